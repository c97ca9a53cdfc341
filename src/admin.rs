//! Is it well, and what does it count? Two small HTTP servers for whoever runs this sidecar.
