//! The primitives under both protocols: numbers, strings and lists, bounded and buffered.
//!
//! Everything is made of u64s, little-endian. A string is its length, its bytes and zero padding
//! to a multiple of 8; a list or set is its count and its strings. Knows no opcodes.

use std::io::{self, BufRead, BufReader, Read, Write};

use super::Error;
use crate::base::text;
use crate::nix::excerpt;

/// Bytes kept in memory in each direction.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a string that is a path, hash, signature or name.
pub const WORD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a string for people.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Strings in one list.
pub const LIST_COUNT_MAX: usize = 1_000_000;
/// Bytes of all words of one reply, with what it costs to keep them.
pub const REPLY_BYTES_MAX: usize = 256 << 20;
/// What a word costs besides its bytes.
const WORD_COST_BYTES: usize = 32;

/// Reads primitives. The buffer is this reader's own, so what lies below may be a plain wrapper
/// around a file descriptor.
pub struct Reader<R> {
    inner: BufReader<R>,
    /// What the words of this reply may still cost.
    budget: usize,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R) -> Self {
        Reader {
            inner: BufReader::with_capacity(BUFFER_BYTES, inner),
            budget: REPLY_BYTES_MAX,
        }
    }

    /// A new reply may cost [`REPLY_BYTES_MAX`] again.
    pub fn begin_reply(&mut self) {
        self.budget = REPLY_BYTES_MAX;
    }

    pub fn get_ref(&self) -> &R {
        self.inner.get_ref()
    }

    pub fn get_mut(&mut self) -> &mut R {
        self.inner.get_mut()
    }

    /// The buffer itself, for parsing a NAR.
    pub fn as_buf_read(&mut self) -> &mut BufReader<R> {
        &mut self.inner
    }

    /// Bytes that have been read from below and not been used yet.
    pub fn buffered(&self) -> &[u8] {
        self.inner.buffer()
    }

    pub fn u64(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.inner.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A number that is 0 or 1. `what` names it in the error.
    pub fn bool(&mut self, what: &str) -> Result<bool, Error> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(Error::protocol(format!("{what} (0 or 1)"), n.to_string())),
        }
    }

    /// A number of things, at most `max`.
    pub fn count(&mut self, what: &str, max: usize) -> Result<usize, Error> {
        let n = self.u64()?;
        match usize::try_from(n) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(Error::protocol(
                format!("at most {max} {what}"),
                n.to_string(),
            )),
        }
    }

    /// At most `max` bytes.
    pub fn bytes(&mut self, what: &str, max: usize) -> Result<Vec<u8>, Error> {
        let len = self.count(&format!("bytes of {what}"), max)?;
        let mut bytes = Vec::new();
        // `take` and growing on demand: a length alone makes us allocate nothing.
        let read = (&mut self.inner).take(len as u64).read_to_end(&mut bytes)?;
        if read < len {
            return Err(eof());
        }
        let mut padding = [0; 8];
        let padding = &mut padding[..len.wrapping_neg() % 8];
        self.inner.read_exact(padding)?;
        match padding.iter().all(|&byte| byte == 0) {
            true => Ok(bytes),
            false => Err(Error::protocol(
                format!("zero padding after {what}"),
                format!("'{}'", excerpt(padding)),
            )),
        }
    }

    /// A path, hash or name: UTF-8, at most [`WORD_BYTES_MAX`].
    pub fn word(&mut self, what: &str) -> Result<String, Error> {
        let bytes = self.bytes(what, WORD_BYTES_MAX)?;
        self.budget = self
            .budget
            .checked_sub(bytes.len() + WORD_COST_BYTES)
            .ok_or_else(|| {
                Error::protocol(
                    format!("a reply of at most {REPLY_BYTES_MAX} bytes"),
                    "more",
                )
            })?;
        String::from_utf8(bytes).map_err(|e| {
            Error::protocol(
                format!("{what} in UTF-8"),
                format!("'{}'", excerpt(e.as_bytes())),
            )
        })
    }

    /// A word that the protocol gives as the empty string when there is none.
    pub fn optional_word(&mut self, what: &str) -> Result<Option<String>, Error> {
        let word = self.word(what)?;
        Ok((!word.is_empty()).then_some(word))
    }

    /// A text for people, at most [`TEXT_BYTES_MAX`], made presentable by [`clean_text`].
    pub fn text(&mut self, what: &str) -> Result<String, Error> {
        Ok(clean_text(&self.bytes(what, TEXT_BYTES_MAX)?))
    }

    /// A list of at most `count_max` words.
    pub fn words(&mut self, what: &str, count_max: usize) -> Result<Vec<String>, Error> {
        let count = self.count(what, count_max)?;
        (0..count).map(|_| self.word(what)).collect()
    }

    /// Up to `max` bytes that are there without waiting, for showing a greeting that is none.
    pub(crate) fn peek_buffered(&self, max: usize) -> &[u8] {
        let buffered = self.inner.buffer();
        &buffered[..buffered.len().min(max)]
    }

    /// The first 8 bytes of a conversation; if it ends before, those that came.
    pub(crate) fn first_u64(&mut self) -> Result<Result<u64, Vec<u8>>, Error> {
        let mut bytes = Vec::with_capacity(8);
        while bytes.len() < 8 {
            let available = match self.inner.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if available.is_empty() {
                return Ok(Err(bytes));
            }
            let n = available.len().min(8 - bytes.len());
            bytes.extend_from_slice(&available[..n]);
            self.inner.consume(n);
        }
        let mut whole = [0; 8];
        whole.copy_from_slice(&bytes);
        Ok(Ok(u64::from_le_bytes(whole)))
    }
}

fn eof() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer hung up",
    ))
}

/// Bytes of a text for people that are kept.
pub const CLEAN_TEXT_BYTES_MAX: usize = 64 << 10;

/// A text from the other side, made presentable and cut to [`CLEAN_TEXT_BYTES_MAX`], without blanks at the end. Nix
/// colours its messages even where nothing is a terminal.
pub fn clean_text(bytes: &[u8]) -> String {
    text::presentable(bytes, CLEAN_TEXT_BYTES_MAX)
        .trim_end()
        .to_owned()
}

/// Collects what is written and passes it on in large pieces. Nothing is written on drop: a
/// connection that is given up must not block.
pub struct Writer<W> {
    inner: W,
    buffer: Vec<u8>,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(inner: W) -> Self {
        Writer {
            inner,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            bytes: 0,
        }
    }

    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Bytes written since the beginning, with those still in the buffer.
    pub fn bytes_written(&self) -> u64 {
        self.bytes
    }

    pub fn u64(&mut self, n: u64) -> Result<(), Error> {
        self.raw(&n.to_le_bytes())
    }

    pub fn bool(&mut self, value: bool) -> Result<(), Error> {
        self.u64(u64::from(value))
    }

    pub fn string(&mut self, text: impl AsRef<[u8]>) -> Result<(), Error> {
        let bytes = text.as_ref();
        self.u64(bytes.len() as u64)?;
        self.raw(bytes)?;
        self.raw(&[0; 8][..bytes.len().wrapping_neg() % 8])
    }

    pub fn optional(&mut self, text: Option<&str>) -> Result<(), Error> {
        self.string(text.unwrap_or(""))
    }

    pub fn strings<T: AsRef<[u8]>>(&mut self, texts: &[T]) -> Result<(), Error> {
        self.u64(texts.len() as u64)?;
        texts.iter().try_for_each(|text| self.string(text))
    }

    /// Bytes as they are, without length and padding.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.pass_on()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.inner.write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        self.pass_on()?;
        Ok(self.inner.flush()?)
    }

    fn pass_on(&mut self) -> Result<(), Error> {
        let result = self.inner.write_all(&self.buffer);
        self.buffer.clear();
        Ok(result?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Writer<Vec<u8>>) -> Result<(), Error>) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        write(&mut writer).unwrap();
        writer.flush().unwrap();
        assert_eq!(writer.bytes_written(), writer.get_ref().len() as u64);
        writer.inner
    }

    fn reader(bytes: &[u8]) -> Reader<&[u8]> {
        Reader::new(bytes)
    }

    fn refusal(result: Result<impl std::fmt::Debug, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_string_is_padded_to_eight() {
        assert_eq!(
            written(|w| w.string("abc")),
            b"\x03\0\0\0\0\0\0\0abc\0\0\0\0\0"
        );
        assert_eq!(
            written(|w| w.string("12345678")),
            b"\x08\0\0\0\0\0\0\x0012345678"
        );
        assert_eq!(written(|w| w.string("")), [0; 8]);
    }

    #[test]
    fn lengths_and_counts_have_bounds() {
        let huge = u64::MAX.to_le_bytes();
        assert!(refusal(reader(&huge).bytes("a name", 10)).contains("at most 10 bytes of a name"));
        assert!(refusal(reader(&huge).words("paths", 10)).contains("at most 10 paths"));
        assert!(refusal(reader(&huge).bool("a flag")).contains("a flag (0 or 1)"));
        // A length within bounds, of which nothing arrives.
        let long = (TEXT_BYTES_MAX as u64).to_le_bytes();
        assert!(reader(&long).text("a message").unwrap_err().is_eof());
    }

    #[test]
    fn a_reply_has_a_bound_of_its_own() {
        let bytes = written(|w| w.strings(&["12345678"; 10]));
        let mut r = reader(&bytes);
        r.budget = 9 * (8 + WORD_COST_BYTES);
        assert!(refusal(r.words("paths", 10)).contains("a reply of at most"));
        let mut r = reader(&bytes);
        r.budget = 0;
        r.begin_reply();
        assert_eq!(r.words("paths", 10).unwrap().len(), 10);
    }

    #[test]
    fn padding_is_zero() {
        let bytes = b"\x03\0\0\0\0\0\0\0abc\0\0\x01\0\0";
        assert!(refusal(reader(bytes).word("a name")).contains("zero padding"));
        assert!(reader(&bytes[..12]).word("a name").unwrap_err().is_eof());
        assert!(
            refusal(reader(b"\x01\0\0\0\0\0\0\0\xff\0\0\0\0\0\0\0").word("a name"))
                .contains("UTF-8")
        );
    }

    #[test]
    fn large_pieces_pass_the_buffer_in_order() {
        let large = vec![7; BUFFER_BYTES + 5];
        let bytes = written(|w| {
            w.u64(1)?;
            w.string(&large)?;
            w.u64(2)
        });
        let mut r = reader(&bytes);
        assert_eq!(r.u64().unwrap(), 1);
        assert_eq!(r.bytes("a blob", large.len()).unwrap(), large);
        assert_eq!(r.u64().unwrap(), 2);
    }

    #[test]
    fn errors_from_below_keep_their_kind() {
        struct Late;
        impl Read for Late {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::TimedOut))
            }
        }
        match Reader::new(Late).word("a name") {
            Err(Error::Io(e)) => assert_eq!(e.kind(), io::ErrorKind::TimedOut),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn texts_are_made_presentable() {
        for (raw, clean) in [
            (
                &b"builder for '\x1b[35;1m/nix/x.drv\x1b[0m' failed\n"[..],
                "builder for '/nix/x.drv' failed",
            ),
            (b"a\r\nb\tc\0d\x07", "a\nb\tcd"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1b[31", ""),
            (b"\x1b[3\ntext", "\ntext"),
            (b"\x1b", ""),
            (b"\x1bMtext", "text"),
            ("C1\u{9b}m".as_bytes(), "C1m"),
            (b"bad \xff utf-8", "bad \u{fffd} utf-8"),
        ] {
            assert_eq!(clean_text(raw), clean, "{}", raw.escape_ascii());
        }
        assert_eq!(clean_text(&vec![b'x'; 1 << 20]).len(), CLEAN_TEXT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn round_trips(texts: Vec<String>, n: u64) {
            let bytes = written(|w| { w.strings(&texts)?; w.u64(n) });
            let mut r = reader(&bytes);
            prop_assert_eq!(r.words("texts", texts.len()).unwrap(), texts);
            prop_assert_eq!(r.u64().unwrap(), n);
            prop_assert!(r.u64().unwrap_err().is_eof());
        }

        #[test]
        fn any_text_becomes_presentable(bytes: Vec<u8>) {
            let text = clean_text(&bytes);
            prop_assert!(text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            prop_assert_eq!(clean_text(text.as_bytes()), text);
        }
    }
}
