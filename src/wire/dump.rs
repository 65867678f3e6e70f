//! A NAR that is arriving as the answer to a request.
//!
//! Knows only where it ends. The members go to a visitor, the bytes to whoever reads.

use std::io::{self, BufReader, Read};

use super::Error;
use crate::nix::nar::{NarDigest, NarReader, Visitor};

/// Reads exactly one NAR from a connection. The connection is usable again after
/// [`Dump::finish`]; dropped before that, it is out of step for good.
///
/// While reading, a malformed NAR is an `io::Error` around a `nix::Error`.
pub struct Dump<'c, R: Read, V: Visitor> {
    nar: NarReader<&'c mut BufReader<R>, V>,
    in_step: &'c mut bool,
}

impl<'c, R: Read, V: Visitor> Dump<'c, R, V> {
    pub(crate) fn new(reader: &'c mut BufReader<R>, visitor: V, in_step: &'c mut bool) -> Self {
        Dump {
            nar: NarReader::new(reader, visitor),
            in_step,
        }
    }

    /// Reads and drops what is left, and gives hash and length of the whole NAR.
    pub fn finish(mut self) -> Result<NarDigest, Error> {
        let digest = self.nar.drain()?;
        *self.in_step = true;
        Ok(digest)
    }
}

impl<R: Read, V: Visitor> Read for Dump<'_, R, V> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.nar.read(buf)
    }
}
