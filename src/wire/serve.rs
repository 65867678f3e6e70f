//! The protocol of `nix-store --serve --write`, which Hydra's machines speak.
//!
//! Strictly one request after the other; the only flag is whether the connection is in step.
//! There is no error frame: a server that cannot do what is asked prints a message on its
//! standard error and hangs up, which is [`Error::Io`] with `UnexpectedEof` here. So is every
//! error in the middle of a request; the connection is of no more use then
//! ([`ServeClient::usable`]).
//!
//! Version 2.7 is announced, the newest that Nix 2.8 and 2.26 know. From 2.6 on a build's result
//! ends with the built outputs. Nix 2.4 to 2.10 send them to every client by mistake, but those
//! servers are all of version 2.6 at least, so the negotiated version is right for them too.
//!
//! What a server process remembers between requests (temporary roots, paths known to be
//! missing, substitution switched off by a build) is the caller's concern.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::build_result::BuildResult;
use super::dump::Dump;
use super::frame::{self, Reader, Writer};
use super::{version_text, Error};
use crate::nix::hash::{hex_encode, parse_sha256, Sha256Hash};
use crate::nix::nar::Visitor;
use crate::nix::{excerpt, store_path, Derivation, ValidPathInfo};

const CLIENT_MAGIC: u64 = 0x390c_9deb;
const SERVER_MAGIC: u64 = 0x5452_eecb;
/// What is announced: 2.7.
const VERSION: u64 = 0x207;
/// The oldest server: adding a NAR came with 2.5.
const VERSION_MIN: u64 = 0x205;

const QUERY_VALID_PATHS: u64 = 1;
const QUERY_PATH_INFOS: u64 = 2;
const DUMP_STORE_PATH: u64 = 3;
const QUERY_CLOSURE: u64 = 7;
const BUILD_DERIVATION: u64 = 8;
const ADD_TO_STORE_NAR: u64 = 9;

/// References of one path.
const REFERENCES_MAX: usize = 100_000;
/// Signatures of one path.
const SIGNATURES_MAX: usize = 1000;
/// Bytes shown of a greeting that is none.
const GREETING_BYTES_SHOWN: usize = 200;
/// Bytes copied at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// What a server says about one valid path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServePathInfo {
    /// Full store path.
    pub path: String,
    pub deriver: Option<String>,
    /// Full store paths, sorted.
    pub references: Vec<String>,
    /// Bytes.
    pub nar_size: u64,
    pub nar_hash: Sha256Hash,
    pub ca: Option<String>,
    pub sigs: Vec<String>,
}

impl From<ServePathInfo> for ValidPathInfo {
    /// Leaves out what a server does not say: registration time and trust.
    fn from(info: ServePathInfo) -> ValidPathInfo {
        ValidPathInfo {
            path: info.path,
            deriver: info.deriver,
            nar_hash: info.nar_hash,
            references: info.references,
            registration_time: 0,
            nar_size: info.nar_size,
            ultimate: false,
            sigs: info.sigs,
            ca: info.ca,
        }
    }
}

/// Limits of one build. A server that itself goes through a daemon ignores the first three, so
/// the caller enforces them too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BuildOptions {
    /// Seconds without output; 0 for no limit.
    pub max_silent: u64,
    /// Seconds; 0 for no limit.
    pub timeout: u64,
    /// Bytes; 0 for no limit.
    pub max_log_size: u64,
    /// How often to build again to compare.
    pub repeats: u64,
    pub enforce_determinism: bool,
    pub keep_failed: bool,
}

/// The client's end of a connection to `nix-store --serve --write`.
pub struct ServeClient<R, W> {
    reader: Reader<R>,
    writer: Writer<W>,
    server_version: u64,
    /// The smaller of the two minor versions.
    minor: u64,
    /// No request is under way and none has failed.
    in_step: bool,
    building: bool,
}

impl<R: Read, W: Write> ServeClient<R, W> {
    /// Greets the server and agrees on a version. What is no greeting (the output of a login
    /// shell, mostly) is shown in the error.
    pub fn handshake(reader: R, writer: W) -> Result<Self, Error> {
        let mut reader = Reader::new(reader);
        let mut writer = Writer::new(writer);
        writer.u64(CLIENT_MAGIC)?;
        writer.u64(VERSION)?;
        writer.flush()?;
        expect_magic(&mut reader, SERVER_MAGIC, "'nix-store --serve'")?;
        let server_version = reader.u64()?;
        if server_version & !0xff != VERSION & !0xff || server_version < VERSION_MIN {
            return Err(Error::Unsupported(format!(
                "unsupported 'nix-store --serve' protocol version {}: need 2.5 or a later 2.x",
                version_text(server_version)
            )));
        }
        Ok(ServeClient {
            reader,
            writer,
            server_version,
            minor: server_version.min(VERSION) & 0xff,
            in_step: true,
            building: false,
        })
    }

    /// The server's version: major times 256 plus minor.
    pub fn server_version(&self) -> u64 {
        self.server_version
    }

    /// Whether another request can be made.
    pub fn usable(&self) -> bool {
        self.in_step
    }

    /// The reader below the buffer.
    pub fn get_ref(&self) -> &R {
        self.reader.get_ref()
    }

    /// The reader below the buffer. Reading from it takes bytes out of the conversation.
    pub fn reader_mut(&mut self) -> &mut R {
        self.reader.get_mut()
    }

    /// The writer below the buffer.
    pub fn writer_mut(&mut self) -> &mut W {
        self.writer.get_mut()
    }

    /// Both ends below the buffers.
    pub fn get_mut(&mut self) -> (&mut R, &mut W) {
        (self.reader.get_mut(), self.writer.get_mut())
    }

    /// Bytes that have arrived and not been used: if not 0, polling below may wait in vain.
    pub fn buffered(&self) -> usize {
        self.reader.buffered().len()
    }

    /// Bytes sent since the beginning.
    pub fn bytes_written(&self) -> u64 {
        self.writer.bytes_written()
    }

    /// Which of `paths` are valid, in the server's order. `lock` keeps them from being collected
    /// while the connection lives; `substitute` lets the server fetch the others first, which
    /// can take long.
    pub fn query_valid_paths<T: AsRef<str>>(
        &mut self,
        paths: &[T],
        lock: bool,
        substitute: bool,
    ) -> Result<Vec<String>, Error> {
        self.request(|c| {
            c.writer.u64(QUERY_VALID_PATHS)?;
            c.writer.bool(lock)?;
            c.writer.bool(substitute)?;
            c.send_paths(paths)?;
            let mut asked: HashSet<&str> = paths.iter().map(AsRef::as_ref).collect();
            let valid = c.reader.words("valid paths", asked.len())?;
            for path in &valid {
                take_asked(&mut asked, path)?;
            }
            Ok(valid)
        })
    }

    /// What the server knows of those of `paths` that are valid, in its order. Asking about a
    /// path that is not valid makes the server process believe so for an hour.
    pub fn query_path_infos<T: AsRef<str>>(
        &mut self,
        paths: &[T],
    ) -> Result<Vec<ServePathInfo>, Error> {
        self.request(|c| {
            c.writer.u64(QUERY_PATH_INFOS)?;
            c.send_paths(paths)?;
            let mut asked: HashSet<&str> = paths.iter().map(AsRef::as_ref).collect();
            let mut infos = Vec::new();
            while let Some(path) = c.reader.optional_word("path or end of the path infos")? {
                take_asked(&mut asked, &path)?;
                infos.push(c.path_info(path)?);
            }
            Ok(infos)
        })
    }

    fn path_info(&mut self, path: String) -> Result<ServePathInfo, Error> {
        let r = &mut self.reader;
        let deriver = r.optional_word("deriver")?;
        let references = r.words("references", REFERENCES_MAX)?;
        check_siblings(&path, deriver.iter().chain(&references))?;
        let _download_size = r.u64()?;
        Ok(ServePathInfo {
            path,
            deriver,
            references,
            nar_size: r.u64()?,
            nar_hash: parse_sha256(&r.word("NAR hash")?)?,
            ca: r.optional_word("content address")?,
            sigs: r.words("signatures", SIGNATURES_MAX)?,
        })
    }

    /// The NAR of a valid path. A server that does not have it hangs up.
    pub fn dump_store_path<V: Visitor>(
        &mut self,
        path: &str,
        visitor: V,
    ) -> Result<Dump<'_, R, V>, Error> {
        self.begin()?;
        self.writer.u64(DUMP_STORE_PATH)?;
        self.writer.string(path)?;
        self.writer.flush()?;
        Ok(Dump::new(
            self.reader.as_buf_read(),
            visitor,
            &mut self.in_step,
        ))
    }

    /// The closure of `paths`: themselves and all that they refer to; with `include_outputs`
    /// also the outputs of derivations among them.
    pub fn query_closure<T: AsRef<str>>(
        &mut self,
        paths: &[T],
        include_outputs: bool,
    ) -> Result<Vec<String>, Error> {
        self.request(|c| {
            c.writer.u64(QUERY_CLOSURE)?;
            c.writer.bool(include_outputs)?;
            c.send_paths(paths)?;
            c.reader.words("closure", frame::LIST_COUNT_MAX)
        })
    }

    /// Adds a path to the server's store, which trusts us for its signatures. `nar` has to yield
    /// exactly `info.nar_size` bytes with `info.nar_hash`; if not, [`Error::Source`] says so.
    /// The references have to be valid there already. Only for a path that the server has just
    /// called invalid: a valid one could be rewritten under its readers.
    pub fn add_to_store_nar(
        &mut self,
        info: &ValidPathInfo,
        nar: &mut dyn Read,
    ) -> Result<(), Error> {
        if info.nar_size == 0 {
            return Err(empty_nar(info));
        }
        self.request(|c| {
            let w = &mut c.writer;
            w.u64(ADD_TO_STORE_NAR)?;
            w.string(&info.path)?;
            w.optional(info.deriver.as_deref())?;
            w.string(hex_encode(&info.nar_hash))?;
            w.strings(&info.references)?;
            w.u64(info.registration_time)?;
            w.u64(info.nar_size)?;
            w.bool(info.ultimate)?;
            w.strings(&info.sigs)?;
            w.optional(info.ca.as_deref())?;
            copy_nar(info, nar, |chunk| w.raw(chunk))?;
            w.flush()?;
            match c.reader.u64()? {
                1 => Ok(()),
                n => Err(Error::protocol("1 after adding a path", n.to_string())),
            }
        })
    }

    /// Sends a build request. `inputs` are the output paths of the input derivations; the
    /// derivation's own sources are added to them. All of them have to be valid there; the
    /// `.drv` files need not be. The answer is [`ServeClient::build_derivation_finish`]'s; what
    /// the builder prints comes on the server's standard error meanwhile.
    pub fn build_derivation_start<T: AsRef<str>>(
        &mut self,
        drv_path: &str,
        drv: &Derivation,
        inputs: &[T],
        options: &BuildOptions,
    ) -> Result<(), Error> {
        self.begin()?;
        let w = &mut self.writer;
        w.u64(BUILD_DERIVATION)?;
        w.string(drv_path)?;
        write_basic_derivation(w, drv, inputs)?;
        w.u64(options.max_silent)?;
        w.u64(options.timeout)?;
        w.u64(options.max_log_size)?;
        w.u64(options.repeats)?;
        w.bool(options.enforce_determinism)?;
        if self.minor >= 7 {
            w.bool(options.keep_failed)?;
        }
        w.flush()?;
        self.building = true;
        Ok(())
    }

    /// Waits for the result of the build that was started.
    pub fn build_derivation_finish(&mut self) -> Result<BuildResult, Error> {
        if !self.building {
            return Err(Error::Unusable);
        }
        self.building = false;
        let result = BuildResult::read(&mut self.reader, true, self.minor >= 6)?;
        self.in_step = true;
        Ok(result)
    }

    fn send_paths<T: AsRef<str>>(&mut self, paths: &[T]) -> Result<(), Error> {
        self.writer.u64(paths.len() as u64)?;
        for path in paths {
            self.writer.string(path.as_ref())?;
        }
        self.writer.flush()
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.reader.begin_reply();
        match std::mem::replace(&mut self.in_step, false) {
            true => Ok(()),
            false => Err(Error::Unusable),
        }
    }

    /// Runs one request; afterwards the connection is in step only if it succeeded.
    fn request<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.begin()?;
        let result = f(self)?;
        self.in_step = true;
        Ok(result)
    }
}

/// Reads the first number of a conversation. If it is another one, the error shows what came.
pub(crate) fn expect_magic<R: Read>(
    reader: &mut Reader<R>,
    magic: u64,
    program: &str,
) -> Result<(), Error> {
    let first = reader.first_u64()?;
    if first == Ok(magic) {
        return Ok(());
    }
    let mut bytes = match first {
        // Nothing came: the caller's standard error knows more than "a greeting was expected".
        Err(bytes) if bytes.is_empty() => {
            return Err(Error::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{program} hung up without a greeting"),
            )))
        }
        Err(bytes) => bytes,
        Ok(number) => number.to_le_bytes().to_vec(),
    };
    let shown = GREETING_BYTES_SHOWN - bytes.len();
    bytes.extend_from_slice(reader.peek_buffered(shown));
    Err(Error::protocol(
        format!("the greeting of {program}"),
        format!("'{}'", excerpt(&bytes)),
    ))
}

/// The derivation without its input derivations, as both protocols send it.
pub(crate) fn write_basic_derivation<W: Write, T: AsRef<str>>(
    w: &mut Writer<W>,
    drv: &Derivation,
    inputs: &[T],
) -> Result<(), Error> {
    w.u64(drv.outputs.len() as u64)?;
    for (name, output) in &drv.outputs {
        w.string(name)?;
        w.optional(output.path.as_deref())?;
        w.string(&output.hash_algo)?;
        w.string(&output.hash)?;
    }
    let mut sources: Vec<&str> = inputs.iter().map(AsRef::as_ref).collect();
    sources.extend(drv.input_srcs.iter().map(String::as_str));
    sources.sort_unstable();
    sources.dedup();
    w.strings(&sources)?;
    w.string(&drv.platform)?;
    w.string(&drv.builder)?;
    w.strings(&drv.args)?;
    w.u64(drv.env.len() as u64)?;
    for (name, value) in &drv.env {
        w.string(name)?;
        w.string(value)?;
    }
    Ok(())
}

/// Copies the NAR and checks that it is the one that `info` describes. After an error some of it
/// has been sent.
pub(crate) fn copy_nar(
    info: &ValidPathInfo,
    nar: &mut dyn Read,
    mut send: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let wrong = |why: String| {
        Error::Source(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the NAR of '{}' {why}", info.path),
        ))
    };
    let mut hasher = Sha256::new();
    let mut missing = info.nar_size;
    let mut chunk = vec![0; CHUNK_BYTES];
    while missing > 0 {
        let max = usize::try_from(missing).map_or(CHUNK_BYTES, |m| m.min(CHUNK_BYTES));
        let n = match nar.read(&mut chunk[..max]) {
            Ok(0) => {
                let have = info.nar_size - missing;
                return Err(wrong(format!("has {have} bytes, not {}", info.nar_size)));
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::Source(e)),
        };
        missing -= n as u64;
        hasher.update(&chunk[..n]);
        send(&chunk[..n])?;
    }
    let rest = loop {
        match nar.read(&mut chunk[..1]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other.map_err(Error::Source)?,
        }
    };
    if rest > 0 {
        return Err(wrong(format!("has more than {} bytes", info.nar_size)));
    }
    let hash: Sha256Hash = hasher.finalize().into();
    match hash == info.nar_hash {
        true => Ok(()),
        false => Err(wrong(format!(
            "has the hash {}, not {}",
            hex_encode(&hash),
            hex_encode(&info.nar_hash)
        ))),
    }
}

pub(crate) fn empty_nar(info: &ValidPathInfo) -> Error {
    Error::Source(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the NAR of '{}' cannot be empty", info.path),
    ))
}

fn take_asked(asked: &mut HashSet<&str>, path: &str) -> Result<(), Error> {
    match asked.remove(path) {
        true => Ok(()),
        false => Err(Error::protocol(
            "a path that was asked for",
            format!("'{}'", excerpt(path.as_bytes())),
        )),
    }
}

/// Derivers and references lie in the same store as the path they belong to.
pub(crate) fn check_siblings<'p>(
    path: &str,
    others: impl IntoIterator<Item = &'p String>,
) -> Result<(), Error> {
    let directory = path.rfind('/').map_or("", |slash| &path[..slash]);
    let store_dir = crate::nix::StoreDir(directory.to_owned());
    for other in others {
        store_path::check_store_path(&store_dir, other)?;
    }
    Ok(())
}
