//! Building blocks without domain words.

pub mod text;
