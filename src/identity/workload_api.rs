//! Identity from a SPIFFE Workload API socket.
