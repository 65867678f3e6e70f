//! The two protocols that Nix speaks, over any `Read` and `Write`.
//!
//! Knows bytes and their order. Knows no processes, file descriptors, deadlines or machines: a
//! reader that fails with a timeout ends the request with [`Error::Io`] around that very error.
//!
//! The peer may be hostile or just not Nix: every count and length has a bound, memory grows
//! only with bytes that have arrived, and text for people is cleaned of control characters.

pub mod build_result;
pub mod dump;
pub mod frame;
pub mod serve;
pub mod worker;

use std::io;

pub use build_result::{BuildResult, ResultStatus};
pub use dump::Dump;
pub use serve::{BuildOptions, ServeClient, ServePathInfo};
pub use worker::{ClientSettings, Missing, WorkerClient};

/// Why a request did not get its answer.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// Reading from or writing to the peer failed, or the peer hung up (`UnexpectedEof`).
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer sent something else than the protocol allows. The connection is of no more use.
    #[error("expected {expected}, got {got}")]
    Protocol { expected: String, got: String },
    /// The peer is too old, too new, or lacks an operation.
    #[error("{0}")]
    Unsupported(String),
    /// The peer says that the request failed. The connection may still be usable.
    #[error("{0}")]
    Remote(String),
    /// What the caller gave could not be read, or is not what the caller said it is.
    #[error("cannot read the NAR to be sent: {0}")]
    Source(io::Error),
    /// A malformed NAR, path or hash, or a visitor that refused one.
    #[error(transparent)]
    Nix(crate::nix::Error),
    /// An earlier request on this connection did not end well, or one is still under way.
    #[error("the connection is out of step after an earlier request")]
    Unusable,
}

impl From<crate::nix::Error> for Error {
    fn from(e: crate::nix::Error) -> Error {
        match e {
            crate::nix::Error::Io(e) => Error::Io(e),
            e => Error::Nix(e),
        }
    }
}

impl Error {
    pub(crate) fn protocol(expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Protocol {
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// Whether the peer hung up.
    pub fn is_eof(&self) -> bool {
        matches!(self, Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof)
    }
}

/// Versions are a major number above a minor byte.
pub(crate) fn version_text(version: u64) -> String {
    format!("{}.{}", version >> 8, version & 0xff)
}
