//! Compression of NARs, listings and logs, by its names in store URIs and narinfos.
//!
//! Knows methods, levels and file endings; does not know what is compressed. Written through a stream, so memory does
//! not grow with the data (xz level 6: about 100 MB a thread).

use std::io::{self, BufReader, Read, Write};

use bzip2::{read::MultiBzDecoder, write::BzEncoder};
use liblzma::read::XzDecoder;
use liblzma::stream::{Check, MtStreamBuilder, Stream};
use liblzma::write::XzEncoder;

/// Threads of one compressor at most, with `parallel-compression`.
const THREADS_MAX: usize = 8;

/// A method that hydrad can write NARs with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    None,
    Xz,
    Zstd,
    Bzip2,
}

impl Method {
    /// As in `compression=` and in a narinfo.
    pub fn parse(text: &str) -> Option<Method> {
        Some(match text {
            "none" | "" => Method::None,
            "xz" => Method::Xz,
            "zstd" => Method::Zstd,
            "bzip2" => Method::Bzip2,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Method::None => "none",
            Method::Xz => "xz",
            Method::Zstd => "zstd",
            Method::Bzip2 => "bzip2",
        }
    }

    /// What Nix puts behind `.nar`.
    pub fn file_ending(self) -> &'static str {
        match self {
            Method::None => "",
            Method::Xz => ".xz",
            Method::Zstd => ".zst",
            Method::Bzip2 => ".bz2",
        }
    }

    /// The levels that `compression-level` may have.
    pub fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Method::None => 0..=0,
            Method::Xz => 0..=9,
            Method::Zstd => 1..=22,
            Method::Bzip2 => 1..=9,
        }
    }

    fn default_level(self) -> i32 {
        match self {
            Method::None => 0,
            Method::Xz => 6,
            Method::Zstd => 3,
            Method::Bzip2 => 9,
        }
    }
}

/// A method with its level and threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct How {
    pub method: Method,
    /// `None`: the method's usual one.
    pub level: Option<i32>,
    /// xz and zstd with several threads; the others have one anyway.
    pub parallel: bool,
}

/// Compresses what is written to it.
pub enum Compressor<W: Write> {
    Plain(W),
    Xz(XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
    Bzip2(BzEncoder<W>),
}

impl<W: Write> Compressor<W> {
    /// # Errors
    /// When the method's library has not the memory.
    pub fn new(how: How, inner: W) -> io::Result<Compressor<W>> {
        let level = how.level.unwrap_or_else(|| how.method.default_level());
        let threads = if how.parallel {
            std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX))
        } else {
            1
        };
        Ok(match how.method {
            Method::None => Compressor::Plain(inner),
            Method::Xz => {
                let preset = level.unsigned_abs();
                let stream = if threads > 1 {
                    MtStreamBuilder::new()
                        .threads(threads as u32)
                        .preset(preset)
                        .check(Check::Crc64)
                        .encoder()
                } else {
                    Stream::new_easy_encoder(preset, Check::Crc64)
                };
                Compressor::Xz(XzEncoder::new_stream(
                    inner,
                    stream.map_err(io::Error::other)?,
                ))
            }
            Method::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(inner, level)?;
                if threads > 1 {
                    encoder.multithread(threads as u32)?;
                }
                Compressor::Zstd(encoder)
            }
            Method::Bzip2 => Compressor::Bzip2(BzEncoder::new(
                inner,
                bzip2::Compression::new(level.unsigned_abs()),
            )),
        })
    }

    /// Writes what is left and gives the inner writer back.
    ///
    /// # Errors
    /// As the inner writer.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Compressor::Plain(inner) => Ok(inner),
            Compressor::Xz(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
            Compressor::Bzip2(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Plain(inner) => inner.write(bytes),
            Compressor::Xz(encoder) => encoder.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
            Compressor::Bzip2(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::Plain(inner) => inner.flush(),
            Compressor::Xz(encoder) => encoder.flush(),
            Compressor::Zstd(encoder) => encoder.flush(),
            Compressor::Bzip2(encoder) => encoder.flush(),
        }
    }
}

/// Undoes a compression by its name in a narinfo; `None` for one that hydrad cannot read.
///
/// # Errors
/// When the method's library has not the memory; damaged data is told by the reader.
pub fn decompress<R: Read + Send + 'static>(
    name: &str,
    inner: R,
) -> io::Result<Option<Box<dyn Read + Send>>> {
    let buffered = BufReader::with_capacity(128 << 10, inner);
    Ok(Some(match name {
        "none" | "" => Box::new(buffered),
        "xz" => Box::new(XzDecoder::new_multi_decoder(buffered)),
        "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
        "bzip2" => Box::new(MultiBzDecoder::new(buffered)),
        "br" => Box::new(brotli::Decompressor::new(buffered, 128 << 10)),
        _ => return Ok(None),
    }))
}

/// How a small object is compressed as a whole, told to HTTP clients as its content encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Encoding {
    #[default]
    None,
    Brotli,
    Zstd,
}

impl Encoding {
    /// As in `ls-compression=`, `log-compression=`, `narinfo-compression=`.
    pub fn parse(text: &str) -> Option<Encoding> {
        Some(match text {
            "none" | "" => Encoding::None,
            "br" => Encoding::Brotli,
            "zstd" => Encoding::Zstd,
            _ => return None,
        })
    }

    /// The value of `Content-Encoding`; empty for none.
    pub fn header(self) -> &'static str {
        match self {
            Encoding::None => "",
            Encoding::Brotli => "br",
            Encoding::Zstd => "zstd",
        }
    }

    /// Copies all of `from` to `to`, compressed.
    ///
    /// # Errors
    /// As the reader and the writer.
    pub fn encode(self, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
        let (mut from, mut to) = (from, to);
        match self {
            Encoding::None => {
                io::copy(&mut from, &mut to)?;
            }
            Encoding::Brotli => {
                let params = brotli::enc::BrotliEncoderParams {
                    quality: 6,
                    ..Default::default()
                };
                brotli::BrotliCompress(&mut from, &mut to, &params)?;
            }
            Encoding::Zstd => zstd::stream::copy_encode(from, to, 0)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    #[test]
    fn what_is_compressed_comes_back() {
        let mut random = Random::new(7);
        let mut bytes: Vec<u8> = (0..300_000).map(|n| (n / 1_000) as u8).collect();
        bytes.extend((0..100_000).map(|_| random.below(256) as u8));
        for method in [Method::None, Method::Xz, Method::Zstd, Method::Bzip2] {
            assert_eq!(Method::parse(method.name()), Some(method));
            for (level, parallel) in [
                (None, false),
                (Some(*method.levels().start()), false),
                (None, true),
            ] {
                let how = How {
                    method,
                    level,
                    parallel,
                };
                let mut compressor = Compressor::new(how, Vec::new()).expect("a compressor");
                for piece in bytes.chunks(777) {
                    compressor.write_all(piece).expect("written");
                }
                let packed = compressor.finish().expect("finished");
                assert!(method == Method::None || packed.len() < 150_000, "{how:?}");
                let mut back = Vec::new();
                decompress(method.name(), io::Cursor::new(packed))
                    .expect("a reader")
                    .expect("known")
                    .read_to_end(&mut back)
                    .expect("read");
                assert!(back == bytes, "{how:?}");
            }
        }
        assert!(decompress("lzip", io::empty()).expect("no error").is_none());
        for encoding in [Encoding::None, Encoding::Brotli, Encoding::Zstd] {
            let mut packed = Vec::new();
            encoding
                .encode(&mut &bytes[..], &mut packed)
                .expect("encoded");
            let mut back = Vec::new();
            decompress(encoding.header(), io::Cursor::new(packed))
                .expect("a reader")
                .expect("known")
                .read_to_end(&mut back)
                .expect("read");
            assert!(back == bytes, "{encoding:?}");
        }
    }
}
