//! (room being furnished)
pub mod simulate;
