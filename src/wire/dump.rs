//! A NAR that is arriving as the answer to a request.
//!
//! Knows only where it ends. The members go to a visitor, the bytes to whoever reads.

use std::io::{self, BufReader, Chain, Cursor, Read};

use super::Error;
use crate::nix::nar::{NarDigest, NarReader, Visitor};

/// What has been read of the NAR already, and the connection.
type Stream<'c, R> = Chain<Cursor<Vec<u8>>, &'c mut BufReader<R>>;

/// Reads exactly one NAR from a connection. The connection is usable again after
/// [`Dump::finish`]; dropped before that, it is out of step for good.
///
/// While reading, a malformed NAR is an `io::Error` around a `nix::Error`.
pub struct Dump<'c, R: Read, V: Visitor> {
    nar: NarReader<Stream<'c, R>, V>,
    in_step: &'c mut bool,
}

impl<'c, R: Read, V: Visitor> Dump<'c, R, V> {
    /// `head` is the beginning of the NAR as far as it has been read.
    pub(crate) fn new(
        head: Vec<u8>,
        reader: &'c mut BufReader<R>,
        visitor: V,
        in_step: &'c mut bool,
    ) -> Self {
        Dump {
            nar: NarReader::new(Cursor::new(head).chain(reader), visitor),
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
