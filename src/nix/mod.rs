//! Nix's file formats: hashes, store paths, derivations, NARs, and the files Hydra looks for in
//! an output.
//!
//! Pure but for the functions that are given a path or a reader. Knows no protocol (that is
//! `wire`), no store's location on disk and no database. Everything read here may come from a
//! builder or a hand-made derivation, so every parser is bounded and answers with an [`Error`].

pub mod derivation;
pub mod derivation_hash;
pub mod expression;
pub mod hash;
pub mod listing;
pub mod nar;
pub mod narinfo;
pub mod path_info;
pub mod products;
pub mod realisation;
pub mod signing;
pub mod store_path;

use std::io;
use std::path::{Path, PathBuf};

pub use derivation::{Derivation, DerivationFacts, DrvKind, Output};
pub use path_info::ValidPathInfo;
pub use store_path::StoreDir;

/// What can be wrong with a Nix file or a text from one.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A hash in none of the accepted notations, or of another length or algorithm.
    #[error("'{text}' is not a hash: {why}")]
    Hash { text: String, why: &'static str },
    /// A text that does not name an object of the store.
    #[error("'{path}' is not a store path: {why}")]
    StorePath { path: String, why: &'static str },
    /// A derivation that Nix would not have written. `at` counts bytes from 0.
    #[error("malformed derivation at byte {at}: {why}")]
    Derivation { at: usize, why: String },
    /// A well-formed derivation whose attributes make no sense.
    #[error("derivation attribute '{attribute}': {why}")]
    Attribute {
        attribute: &'static str,
        why: String,
    },
    /// A derivation's output path is not the one that its contents imply.
    #[error("output '{output}' of '{drv}' should be '{expected}' but is '{found}'")]
    OutputPath {
        drv: String,
        output: String,
        expected: String,
        found: String,
    },
    /// A byte stream that is not a canonical NAR. `at` counts bytes from the start of the NAR.
    #[error("malformed NAR at byte {at}: {why}")]
    Nar { at: u64, why: String },
    /// A narinfo that says too little or nothing that makes sense.
    #[error("malformed narinfo, '{line}': {why}")]
    NarInfo { line: String, why: String },
    /// A text that is no key. Secret keys are never repeated in messages.
    #[error("not a key: {why}")]
    Key { why: &'static str },
    /// A file or directory could not be read or written.
    #[error("cannot {doing} '{}'", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The reader or writer that the caller passed in failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Error {
        Error::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// For passing through an interface that speaks `io::Error`; [`Error::from_io`] undoes it.
    pub fn into_io(self) -> io::Error {
        match self {
            Error::Io(e) => e,
            e => io::Error::new(io::ErrorKind::InvalidData, e),
        }
    }

    /// Finds the `Error` inside an `io::Error` again, if there is one.
    pub fn from_io(e: io::Error) -> Error {
        match e.downcast::<Error>() {
            Ok(e) => e,
            Err(e) => Error::Io(e),
        }
    }
}

/// Characters of foreign text that an error message repeats.
const EXCERPT_CHARS_MAX: usize = 200;

/// The beginning of a foreign text, printable, for an error message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS_MAX)];
    let mut text = head.escape_ascii().to_string();
    if head.len() < bytes.len() {
        text.push_str("...");
    }
    text
}
