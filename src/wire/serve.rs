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
            read_some_of(&mut c.reader, paths)
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
            Vec::new(),
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
    /// The references have to be valid there already. `info.ultimate` should be false: the other
    /// store has not built it. Only for a path that the server has just
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

/// Reads a set of paths, all of which were asked for.
pub(crate) fn read_some_of<R: Read, T: AsRef<str>>(
    r: &mut Reader<R>,
    paths: &[T],
) -> Result<Vec<String>, Error> {
    let mut asked: HashSet<&str> = paths.iter().map(AsRef::as_ref).collect();
    let valid = r.words("valid paths", asked.len())?;
    for path in &valid {
        take_asked(&mut asked, path)?;
    }
    Ok(valid)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::hash::sha256;
    use crate::wire::ResultStatus;
    use proptest::prelude::*;

    const A: &str = "/nix/store/0a000000000000000000000000000000-a";
    const B: &str = "/nix/store/0b000000000000000000000000000000-b";
    const HASH: &str = "sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";

    /// What a server sends.
    #[derive(Default)]
    struct Reply(Vec<u8>);

    impl Reply {
        fn greeting(version: u64) -> Reply {
            Reply::default().n(SERVER_MAGIC).n(version)
        }
        fn n(mut self, n: u64) -> Reply {
            self.0.extend(n.to_le_bytes());
            self
        }
        fn s(mut self, text: &str) -> Reply {
            let mut writer = Writer::new(&mut self.0);
            writer.string(text).unwrap();
            writer.flush().unwrap();
            drop(writer);
            self
        }
        fn strings(self, texts: &[&str]) -> Reply {
            let reply = self.n(texts.len() as u64);
            texts.iter().fold(reply, |reply, text| reply.s(text))
        }
        fn info(self, path: &str) -> Reply {
            let reply = self.s(path).s("").strings(&[B]).n(0).n(120);
            reply.s(HASH).s("").strings(&[])
        }
        fn client(self) -> ServeClient<std::io::Cursor<Vec<u8>>, Vec<u8>> {
            ServeClient::handshake(std::io::Cursor::new(self.0), Vec::new()).unwrap()
        }
    }

    fn greeting_error(bytes: &[u8]) -> String {
        ServeClient::handshake(bytes, Vec::new())
            .err()
            .unwrap()
            .to_string()
    }

    #[test]
    fn greetings() {
        for version in [0x205, 0x206, 0x207, 0x208, 0x2ff] {
            let client = Reply::greeting(version).client();
            assert_eq!(client.server_version(), version);
            assert!(client.usable());
        }
        for version in [0x204, 0x107, 0x300, 0x10207, 0] {
            let error = greeting_error(&Reply::greeting(version).0);
            assert!(error.contains("need 2.5 or a later 2.x"), "{error}");
        }
        let error = greeting_error(b"Welcome to build-7!\n\x1b[1mNo logins.\n");
        assert_eq!(
            error,
            "expected the greeting of 'nix-store --serve', got \
             'Welcome to build-7!\\n\\x1b[1mNo logins.\\n'"
        );
        let error = greeting_error(b"short");
        assert!(error.contains("got 'short'"), "{error}");
        let error = ServeClient::handshake(&b""[..], Vec::new()).err().unwrap();
        assert!(error.is_eof(), "{error}");
        let long = greeting_error(&[b'x'; 5000]);
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn only_paths_that_were_asked_for() {
        let reply = Reply::greeting(0x207).strings(&[A, A]);
        let mut client = reply.client();
        let error = client.query_valid_paths(&[A, B], false, false).unwrap_err();
        assert!(error.to_string().contains("a path that was asked for"));
        assert!(!client.usable());
        assert!(matches!(
            client.query_valid_paths(&[A], false, false),
            Err(Error::Unusable)
        ));

        let mut client = Reply::greeting(0x207).strings(&[A, B, A]).client();
        let error = client.query_valid_paths(&[A, B], false, false).unwrap_err();
        assert!(error.to_string().contains("at most 2 valid paths"));

        let mut client = Reply::greeting(0x207).info(A).info(B).s("").client();
        let error = client.query_path_infos(&[A]).unwrap_err();
        assert!(error.to_string().contains("a path that was asked for"));
    }

    #[test]
    fn path_infos() {
        let mut client = Reply::greeting(0x207).info(A).s("").client();
        let infos = client.query_path_infos(&[B, A]).unwrap();
        assert_eq!(infos.len(), 1);
        assert_eq!(infos[0].references, [B]);
        assert_eq!(infos[0].nar_hash, sha256(b"abc"));
        assert_eq!((infos[0].nar_size, &infos[0].deriver), (120, &None));
        assert!(client.usable());
        // References lie in the same store.
        let outside = Reply::greeting(0x207).s(A).s("/etc/passwd").strings(&[]);
        let error = outside.client().query_path_infos(&[A]).unwrap_err();
        assert!(error
            .to_string()
            .contains("'/etc/passwd' is not a store path"));
        let outside = Reply::greeting(0x207).s(A).s("").strings(&["/gnu/store/x"]);
        assert!(outside.client().query_path_infos(&[A]).is_err());
    }

    fn build(reply: Reply) -> Result<BuildResult, Error> {
        let mut client = reply.client();
        let options = BuildOptions::default();
        client.build_derivation_start(A, &Derivation::default(), &[B], &options)?;
        assert!(!client.usable());
        client.build_derivation_finish()
    }

    #[test]
    fn build_results_by_version() {
        let result = |version| {
            Reply::greeting(version)
                .n(3)
                .s("no\x1b[0m")
                .n(1)
                .n(0)
                .n(5)
                .n(6)
        };
        let old = build(result(0x205)).unwrap();
        assert_eq!(old.status, ResultStatus::PermanentFailure);
        assert_eq!((old.message.as_str(), old.times_built), ("no", 1));
        assert_eq!((old.start, old.stop), (5, 6));
        assert!(build(result(0x206)).unwrap_err().is_eof());

        let realisation = format!("{{\"outPath\":\"{}\"}}", store_path::base_name(A));
        let outputs = |id: &str, json: &str| build(result(0x208).n(1).s(id).s(json));
        let new = outputs("sha256:00!dev", &realisation).unwrap();
        let expected = ("dev".to_owned(), store_path::base_name(A).to_owned());
        assert_eq!(new.built_outputs, [expected]);
        assert!(outputs("sha256:00", &realisation).is_err());
        assert!(outputs("sha256:00!", &realisation).is_err());
        assert!(outputs("sha256:00!out", "{}").is_err());
        assert!(outputs("sha256:00!out", "[").is_err());
        assert!(outputs("sha256:00!out", "{\"outPath\":\"../x\"}").is_err());
        assert!(outputs("sha256:00!out", &"[".repeat(60_000)).is_err());
    }

    #[test]
    fn requests_by_version() {
        let sent = |version| {
            let mut client = Reply::greeting(version).client();
            let options = BuildOptions {
                keep_failed: true,
                ..BuildOptions::default()
            };
            let drv = Derivation::default();
            client
                .build_derivation_start(A, &drv, &[B], &options)
                .unwrap();
            client.get_mut().1.len()
        };
        // keepFailed came with 2.7.
        assert_eq!(sent(0x206) + 8, sent(0x207));
        assert_eq!(sent(0x207), sent(0x208));
    }

    #[test]
    fn one_request_at_a_time() {
        let mut client = Reply::greeting(0x207).client();
        assert!(matches!(
            client.build_derivation_finish(),
            Err(Error::Unusable)
        ));
        assert!(client.usable());
        let options = BuildOptions::default();
        let drv = Derivation::default();
        client
            .build_derivation_start(A, &drv, &[B], &options)
            .unwrap();
        let again = client.build_derivation_start(A, &drv, &[B], &options);
        assert!(matches!(again, Err(Error::Unusable)));
    }

    #[test]
    fn inputs_are_merged_with_sources() {
        let mut client = Reply::greeting(0x207).client();
        let drv = Derivation {
            input_srcs: vec![A.to_owned(), B.to_owned()],
            ..Derivation::default()
        };
        let options = BuildOptions::default();
        client
            .build_derivation_start(A, &drv, &[B, A], &options)
            .unwrap();
        let expected = Reply::default()
            .n(CLIENT_MAGIC)
            .n(VERSION)
            .n(BUILD_DERIVATION)
            .s(A)
            .n(0);
        let expected = expected
            .strings(&[A, B])
            .s("")
            .s("")
            .n(0)
            .n(0)
            .n(0)
            .n(0)
            .n(0)
            .n(0);
        assert_eq!(*client.get_mut().1, expected.n(0).n(0).0);
    }

    fn info(contents: &[u8]) -> ValidPathInfo {
        ValidPathInfo {
            path: A.to_owned(),
            nar_hash: sha256(contents),
            nar_size: contents.len() as u64,
            ..ValidPathInfo::default()
        }
    }

    #[test]
    fn a_nar_is_what_was_announced() {
        let add = |info: &ValidPathInfo, mut nar: &[u8]| {
            let mut client = Reply::greeting(0x207).n(1).client();
            let result = client.add_to_store_nar(info, &mut nar);
            result.map_err(|e| (e.to_string(), client.usable()))
        };
        let check = |nar: &[u8], why: &str| {
            let (error, usable) = add(&info(b"abcd"), nar).unwrap_err();
            assert!(error.contains(why) && !usable, "{error}");
        };
        assert_eq!(add(&info(b"abcd"), b"abcd"), Ok(()));
        check(b"abc", "has 3 bytes, not 4");
        check(b"abcde", "has more than 4 bytes");
        check(b"abce", "has the hash");
        // This one is noticed before anything is sent.
        let (error, usable) = add(&info(b""), b"").unwrap_err();
        assert!(error.contains("cannot be empty") && usable, "{error}");
    }

    #[test]
    fn a_dump_ends_where_the_nar_ends() {
        let mut nar = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        crate::nix::nar::dump_path(dir.path(), &mut nar).unwrap();
        let mut reply = Reply::greeting(0x207);
        reply.0.extend_from_slice(&nar);
        let mut client = reply.strings(&[A]).client();
        let mut dump = client.dump_store_path(B, ()).unwrap();
        let mut copy = Vec::new();
        dump.read_to_end(&mut copy).unwrap();
        assert_eq!(copy, nar);
        assert_eq!(dump.finish().unwrap().sha256, sha256(&nar));
        assert_eq!(client.query_valid_paths(&[A], true, false).unwrap(), [A]);
        // Dropped before its end it leaves the connection out of step.
        let mut reply = Reply::greeting(0x207);
        reply.0.extend_from_slice(&nar);
        let mut client = reply.client();
        drop(client.dump_store_path(B, ()).unwrap());
        assert!(!client.usable());
    }

    proptest! {
        #[test]
        fn any_server_is_answered(bytes: Vec<u8>, words in prop::collection::vec(0u64..4, 0..40)) {
            let words: Vec<u8> = words.iter().flat_map(|n| n.to_le_bytes()).collect();
            let _ = ServeClient::handshake(bytes.as_slice(), Vec::new());
            for bytes in [bytes, words] {
                let client = || {
                    let mut reply = Reply::greeting(0x207);
                    reply.0.extend_from_slice(&bytes);
                    reply.client()
                };
                let drv = Derivation::default();
                let _ = client().query_valid_paths(&[A], false, false);
                let _ = client().query_path_infos(&[A]);
                let _ = client().query_closure(&[A], false);
                let _ = client().add_to_store_nar(&info(b"abc"), &mut &b"abc"[..]);
                prop_assert!(client().dump_store_path(A, ()).unwrap().finish().is_err());
                let mut client = client();
                client.build_derivation_start(A, &drv, &[B], &BuildOptions::default()).unwrap();
                let _ = client.build_derivation_finish();
            }
        }

        // A good conversation, damaged in one byte.
        #[test]
        fn damaged_replies_are_answered(at: prop::sample::Index, byte: u8) {
            let mut reply = Reply::greeting(0x207).info(A).s("").strings(&[A]).0;
            let at = 16 + at.index(reply.len() - 16);
            reply[at] = byte;
            let mut client = Reply(reply).client();
            if client.query_path_infos(&[A]).is_ok() {
                let _ = client.query_valid_paths(&[A], false, false);
            } else {
                prop_assert!(!client.usable());
            }
        }
    }
}
