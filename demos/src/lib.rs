//! See `examples`: each of them is a program of its own.
