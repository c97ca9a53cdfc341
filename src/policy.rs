//! May this peer do this here, now? A [`Question`] in, a [`Permit`] or a [`Denial`] out.
