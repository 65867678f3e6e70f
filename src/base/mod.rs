//! Containers and small tools without a domain word in them.
//!
//! Nothing here knows what a build is, reads a clock or does I/O; everything behaves the same in
//! every process.

pub mod bits;
pub mod hash;
pub mod huge;
pub mod interner;
pub mod lock;
pub mod pool;
pub mod prefetch;
pub mod random;
pub mod text;
pub mod texts;
pub mod tournament;
