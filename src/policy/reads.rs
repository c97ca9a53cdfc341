//! Which inputs can change what a slice says?
