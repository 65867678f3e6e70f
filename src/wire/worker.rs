//! The worker protocol, spoken by `nix-daemon` on its socket or with `--stdio`.
//!
//! Every request is followed by a stream of log messages that ends with `LAST`, before the
//! result, or with `ERROR`. An error raised while the daemon works leaves the connection usable.
//! One raised while it reads the arguments comes twice, and the daemon hangs up; the two look
//! the same at first, so after every error an empty query finds out which it was
//! ([`WorkerClient::usable`]).
//!
//! Version 1.34 is announced (Nix 2.8); newer servers answer in that layout. The parts that
//! depend on the version are those of 1.33 and 1.34, since 1.27 is the oldest server accepted.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::build_result::BuildResult;
use super::dump::Dump;
use super::frame::{self, Reader, Writer};
use super::serve::{check_siblings, copy_nar, empty_nar, expect_magic, read_some_of};
use super::{version_text, Error};
use crate::nix::hash::{hex_encode, parse_sha256};
use crate::nix::nar::Visitor;
use crate::nix::realisation::{OutputId, Realisation};
use crate::nix::ValidPathInfo;

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const SERVER_MAGIC: u64 = 0x6478_696f;
/// What is announced: 1.34.
const VERSION: u64 = 0x122;
/// The oldest server accepted: 1.27.
const VERSION_MIN: u64 = 0x11b;

const IS_VALID_PATH: u64 = 1;
const ADD_TEXT_TO_STORE: u64 = 8;
const BUILD_PATHS: u64 = 9;
const ENSURE_PATH: u64 = 10;
const ADD_TEMP_ROOT: u64 = 11;
const SET_OPTIONS: u64 = 19;
const QUERY_PATH_INFO: u64 = 26;
const QUERY_SUBSTITUTABLE_PATH_INFOS: u64 = 30;
const QUERY_VALID_PATHS: u64 = 31;
const NAR_FROM_PATH: u64 = 38;
const ADD_TO_STORE_NAR: u64 = 39;
const QUERY_MISSING: u64 = 40;
const QUERY_DERIVATION_OUTPUT_MAP: u64 = 41;
const REGISTER_DRV_OUTPUT: u64 = 42;
const QUERY_REALISATION: u64 = 43;
const BUILD_PATHS_WITH_RESULTS: u64 = 46;

const LOG_NEXT: u64 = 0x6f6c_6d67;
const LOG_READ: u64 = 0x6461_7461;
const LOG_WRITE: u64 = 0x6461_7416;
const LOG_LAST: u64 = 0x616c_7473;
const LOG_ERROR: u64 = 0x6378_7470;
const LOG_START: u64 = 0x5354_5254;
const LOG_STOP: u64 = 0x5354_4f50;
const LOG_RESULT: u64 = 0x5253_4c54;

/// A result of this type is a line that a builder printed.
const RESULT_BUILD_LOG_LINE: u64 = 101;

/// References of one path.
const REFERENCES_MAX: usize = 100_000;
/// Signatures of one path.
const SIGNATURES_MAX: usize = 1000;
/// Fields of one activity or result.
const FIELDS_MAX: usize = 1000;
/// Traces of one error.
const TRACES_MAX: usize = 1000;
/// Outputs of one derivation.
const OUTPUTS_MAX: usize = 10_000;

/// Options that hold for the rest of the connection. The defaults are those of a quiet client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientSettings {
    pub keep_failed: bool,
    /// Build the other derivations of a request after one has failed.
    pub keep_going: bool,
    pub try_fallback: bool,
    /// 0 errors only, 3 what `nix-store` prints, up to 7.
    pub verbosity: u64,
    pub max_build_jobs: u64,
    /// Seconds without output; 0 for no limit.
    pub max_silent: u64,
    /// Cores per build; 0 for all.
    pub build_cores: u64,
    pub use_substitutes: bool,
    /// Further settings by their names in `nix.conf`, such as `timeout`, in seconds. A daemon
    /// ignores those that the user may not set.
    pub overrides: Vec<(String, String)>,
}

impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            keep_failed: false,
            keep_going: false,
            try_fallback: false,
            verbosity: 0,
            max_build_jobs: 1,
            max_silent: 0,
            build_cores: 0,
            use_substitutes: true,
            overrides: Vec::new(),
        }
    }
}

/// What would have to be done for paths to become valid.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// Derivations.
    pub will_build: Vec<String>,
    /// Store paths.
    pub will_substitute: Vec<String>,
    /// Store paths that nobody knows how to get.
    pub unknown: Vec<String>,
    /// Bytes.
    pub download_size: u64,
    /// Bytes.
    pub nar_size: u64,
}

/// Called with every line of a log: the daemon's messages and what builders print, as bytes.
pub type LogSink = Box<dyn FnMut(&[u8]) + Send>;

/// The client's end of a connection to a Nix daemon.
pub struct WorkerClient<R, W> {
    reader: Reader<R>,
    writer: Writer<W>,
    server_version: u64,
    /// The smaller of the two minor versions.
    minor: u64,
    nix_version: Option<String>,
    log: Option<LogSink>,
    /// No request is under way, and none has left the connection in doubt.
    in_step: bool,
}

impl<R: Read, W: Write> WorkerClient<R, W> {
    /// Greets the daemon and agrees on a version. Log lines are dropped until
    /// [`WorkerClient::set_log`].
    pub fn handshake(reader: R, writer: W) -> Result<Self, Error> {
        let mut reader = Reader::new(reader);
        let mut writer = Writer::new(writer);
        writer.u64(CLIENT_MAGIC)?;
        writer.flush()?;
        expect_magic(&mut reader, SERVER_MAGIC, "the Nix daemon")?;
        let server_version = reader.u64()?;
        if server_version & !0xff != VERSION & !0xff || server_version < VERSION_MIN {
            return Err(Error::Unsupported(format!(
                "unsupported Nix daemon protocol version {}: need 1.27 or a later 1.x",
                version_text(server_version)
            )));
        }
        writer.u64(VERSION)?;
        // No CPU affinity, no reserved space: both obsolete.
        writer.u64(0)?;
        writer.u64(0)?;
        writer.flush()?;
        let minor = server_version.min(VERSION) & 0xff;
        let nix_version = match minor >= 33 {
            true => Some(reader.text("Nix version")?),
            false => None,
        };
        let mut client = WorkerClient {
            reader,
            writer,
            server_version,
            minor,
            nix_version,
            log: None,
            in_step: true,
        };
        client.until_last()?;
        Ok(client)
    }

    /// Where log lines go from now on; `None` drops them.
    pub fn set_log(&mut self, log: Option<LogSink>) {
        self.log = log;
    }

    /// The server's version: major times 256 plus minor.
    pub fn server_version(&self) -> u64 {
        self.server_version
    }

    /// The version of the daemon's Nix, such as `2.8.0`.
    pub fn nix_version(&self) -> Option<&str> {
        self.nix_version.as_deref()
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

    /// Sets options for the rest of the connection.
    pub fn set_options(&mut self, settings: &ClientSettings) -> Result<(), Error> {
        self.request(
            |w| {
                w.u64(SET_OPTIONS)?;
                w.bool(settings.keep_failed)?;
                w.bool(settings.keep_going)?;
                w.bool(settings.try_fallback)?;
                w.u64(settings.verbosity)?;
                w.u64(settings.max_build_jobs)?;
                w.u64(settings.max_silent)?;
                w.u64(1)?; // obsolete: use of the build hook
                w.u64(if settings.verbosity > 0 { 0 } else { 7 })?; // builders' verbosity
                w.u64(0)?; // obsolete: log type
                w.u64(0)?; // obsolete: print build trace
                w.u64(settings.build_cores)?;
                w.bool(settings.use_substitutes)?;
                w.u64(settings.overrides.len() as u64)?;
                for (name, value) in &settings.overrides {
                    w.string(name)?;
                    w.string(value)?;
                }
                Ok(())
            },
            |_| Ok(()),
        )
    }

    pub fn is_valid_path(&mut self, path: &str) -> Result<bool, Error> {
        self.request(
            |w| {
                w.u64(IS_VALID_PATH)?;
                w.string(path)
            },
            |r| r.bool("validity"),
        )
    }

    /// Which of `paths` are valid. `substitute` lets the daemon fetch the others first.
    pub fn query_valid_paths<T: AsRef<str>>(
        &mut self,
        paths: &[T],
        substitute: bool,
    ) -> Result<Vec<String>, Error> {
        self.request(
            |w| {
                w.u64(QUERY_VALID_PATHS)?;
                write_paths(w, paths)?;
                w.bool(substitute)
            },
            |r| read_some_of(r, paths),
        )
    }

    /// What the daemon knows of a path; `None` if it is not valid.
    pub fn query_path_info(&mut self, path: &str) -> Result<Option<ValidPathInfo>, Error> {
        self.request(
            |w| {
                w.u64(QUERY_PATH_INFO)?;
                w.string(path)
            },
            |r| {
                if !r.bool("validity")? {
                    return Ok(None);
                }
                let deriver = r.optional_word("deriver")?;
                let nar_hash = parse_sha256(&r.word("NAR hash")?)?;
                let references = r.words("references", REFERENCES_MAX)?;
                check_siblings(path, deriver.iter().chain(&references))?;
                Ok(Some(ValidPathInfo {
                    path: path.to_owned(),
                    deriver,
                    nar_hash,
                    references,
                    registration_time: r.u64()?,
                    nar_size: r.u64()?,
                    ultimate: r.bool("ultimate trust")?,
                    sigs: r.words("signatures", SIGNATURES_MAX)?,
                    ca: r.optional_word("content address")?,
                }))
            },
        )
    }

    /// Keeps a path from being collected while the connection lives.
    pub fn add_temp_root(&mut self, path: &str) -> Result<(), Error> {
        self.request(
            |w| {
                w.u64(ADD_TEMP_ROOT)?;
                w.string(path)
            },
            |r| expect_one(r, "adding a root"),
        )
    }

    /// Makes a path valid by substituting it, unless it is valid. An error if that fails.
    pub fn ensure_path(&mut self, path: &str) -> Result<(), Error> {
        self.request(
            |w| {
                w.u64(ENSURE_PATH)?;
                w.string(path)
            },
            |r| expect_one(r, "ensuring a path"),
        )
    }

    /// Which of `paths` a substituter has. Asks them over the network, one path after the other.
    pub fn query_substitutable_paths<T: AsRef<str>>(
        &mut self,
        paths: &[T],
    ) -> Result<Vec<String>, Error> {
        let minor = self.minor;
        self.request(
            |w| {
                w.u64(QUERY_SUBSTITUTABLE_PATH_INFOS)?;
                if minor < 22 {
                    return write_paths(w, paths);
                }
                w.u64(paths.len() as u64)?;
                for path in paths {
                    w.string(path.as_ref())?;
                    w.string("")?; // a content address, which might be looked for under another name
                }
                Ok(())
            },
            |r| {
                let mut found = Vec::new();
                for _ in 0..r.count("substitutable paths", paths.len())? {
                    let path = r.word("substitutable path")?;
                    if !paths.iter().any(|asked| asked.as_ref() == path) {
                        return Err(Error::protocol("one of the paths asked about", path));
                    }
                    r.optional_word("deriver")?;
                    r.words("references", REFERENCES_MAX)?;
                    r.u64()?; // size of the download
                    r.u64()?; // size of the NAR
                    found.push(path);
                }
                Ok(found)
            },
        )
    }

    /// The output paths of a derivation in the store; `None` for one that is not known yet.
    pub fn query_derivation_output_map(
        &mut self,
        drv_path: &str,
    ) -> Result<BTreeMap<String, Option<String>>, Error> {
        self.request(
            |w| {
                w.u64(QUERY_DERIVATION_OUTPUT_MAP)?;
                w.string(drv_path)
            },
            |r| {
                let mut outputs = BTreeMap::new();
                for _ in 0..r.count("outputs", OUTPUTS_MAX)? {
                    let name = r.word("output name")?;
                    outputs.insert(name, r.optional_word("output path")?);
                }
                check_siblings(drv_path, outputs.values().flatten())?;
                Ok(outputs)
            },
        )
    }

    /// Where an output is whose path is known only after the build; `None` if nobody has said.
    pub fn query_realisation(&mut self, id: &OutputId) -> Result<Option<Realisation>, Error> {
        self.needs_realisations()?;
        self.request(
            |w| {
                w.u64(QUERY_REALISATION)?;
                w.string(id.to_string())
            },
            |r| {
                let mut found = None;
                for _ in 0..r.count("realisations", 1)? {
                    found = Some(Realisation::parse(&r.word("realisation")?)?);
                }
                Ok(found)
            },
        )
    }

    /// Says where such an output is; its path has to be valid.
    pub fn register_drv_output(&mut self, realisation: &Realisation) -> Result<(), Error> {
        self.needs_realisations()?;
        self.request(
            |w| {
                w.u64(REGISTER_DRV_OUTPUT)?;
                w.string(realisation.json())
            },
            |_| Ok(()),
        )
    }

    fn needs_realisations(&self) -> Result<(), Error> {
        if self.minor >= 31 {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "the Nix daemon speaks version {} and has no realisations as they are since 1.31",
            version_text(self.server_version)
        )))
    }

    /// Adds a file made from text, such as a derivation; its path.
    pub fn add_text_to_store(
        &mut self,
        name: &str,
        text: &[u8],
        references: &[String],
    ) -> Result<String, Error> {
        self.request(
            |w| {
                w.u64(ADD_TEXT_TO_STORE)?;
                w.string(name)?;
                w.string(text)?;
                w.strings(references)
            },
            |r| r.word("the path of a text"),
        )
    }

    /// Adds a path to the store. `nar` has to yield exactly `info.nar_size` bytes with
    /// `info.nar_hash`; if not, nothing is added, [`Error::Source`] says so and the connection
    /// stays usable. The same goes for [`Error::Remote`], if the daemon refuses. `info.ultimate`
    /// should be false: the daemon's store has not built it.
    pub fn add_to_store_nar(
        &mut self,
        info: &ValidPathInfo,
        repair: bool,
        dont_check_sigs: bool,
        nar: &mut dyn Read,
    ) -> Result<(), Error> {
        if info.nar_size == 0 {
            return Err(empty_nar(info));
        }
        let mut source_error = None;
        let result = self.request(
            |w| {
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
                w.bool(repair)?;
                w.bool(dont_check_sigs)?;
                let copied = copy_nar(info, nar, |chunk| {
                    w.u64(chunk.len() as u64)?;
                    w.raw(chunk)
                });
                match copied {
                    Ok(()) => {}
                    // The daemon finds out by itself: the NAR is short or has another hash.
                    Err(e @ Error::Source(_)) => source_error = Some(e),
                    Err(e) => return Err(e),
                }
                w.u64(0)
            },
            |_| Ok(()),
        );
        match (result, source_error) {
            // Why the daemon got a bad NAR is better known here.
            (Ok(()) | Err(Error::Remote(_)), Some(e)) => Err(e),
            (result, _) => result,
        }
    }

    /// The NAR of a valid path. A path that is not valid is an [`Error::Remote`], and the end of
    /// the connection.
    pub fn nar_from_path<V: Visitor>(
        &mut self,
        path: &str,
        visitor: V,
    ) -> Result<Dump<'_, R, V>, Error> {
        self.request(
            |w| {
                w.u64(NAR_FROM_PATH)?;
                w.string(path)
            },
            |_| Ok(()),
        )?;
        self.in_step = false;
        // The daemon looks for the path only after it has said that all is well. Then an error
        // comes where the NAR should be, or (Nix 2.8) where its first node should be; and comes
        // again, since there is no place for it.
        let mut head = Vec::new();
        for words in [1, 3] {
            for _ in 0..words {
                let word = self.reader.u64()?;
                head.extend(word.to_le_bytes());
            }
            if head.ends_with(&LOG_ERROR.to_le_bytes()) {
                return Err(Error::Remote(self.remote_error()?));
            }
        }
        Ok(Dump::new(
            head,
            self.reader.as_buf_read(),
            visitor,
            &mut self.in_step,
        ))
    }

    /// Builds or substitutes. Each of `targets` is a store path or `<drv>!*` or
    /// `<drv>!<output>,...`. A failure is [`Error::Remote`].
    pub fn build_paths<T: AsRef<str>>(&mut self, targets: &[T]) -> Result<(), Error> {
        self.request(
            |w| {
                w.u64(BUILD_PATHS)?;
                write_paths(w, targets)?;
                w.u64(0) // the normal mode
            },
            |r| expect_one(r, "building"),
        )
    }

    /// Like [`WorkerClient::build_paths`], but a failure is a result like any other. Without
    /// `keep_going` a target that was not touched because another failed has the status
    /// `MiscFailure` and no message.
    pub fn build_paths_with_results<T: AsRef<str>>(
        &mut self,
        targets: &[T],
    ) -> Result<Vec<(String, BuildResult)>, Error> {
        if self.minor < 34 {
            return Err(Error::Unsupported(format!(
                "the Nix daemon speaks version {} and gives no build results before 1.34",
                version_text(self.server_version)
            )));
        }
        self.request(
            |w| {
                w.u64(BUILD_PATHS_WITH_RESULTS)?;
                write_paths(w, targets)?;
                w.u64(0) // the normal mode
            },
            |r| {
                let mut results = Vec::new();
                for _ in 0..r.count("build results", targets.len())? {
                    let target = r.word("build target")?;
                    results.push((target, BuildResult::read(r, true, true)?));
                }
                Ok(results)
            },
        )
    }

    /// What would have to be built or substituted for `targets`, written as for
    /// [`WorkerClient::build_paths`].
    pub fn query_missing<T: AsRef<str>>(&mut self, targets: &[T]) -> Result<Missing, Error> {
        self.request(
            |w| {
                w.u64(QUERY_MISSING)?;
                write_paths(w, targets)
            },
            |r| {
                Ok(Missing {
                    will_build: r.words("derivations to build", frame::LIST_COUNT_MAX)?,
                    will_substitute: r.words("paths to substitute", frame::LIST_COUNT_MAX)?,
                    unknown: r.words("unknown paths", frame::LIST_COUNT_MAX)?,
                    download_size: r.u64()?,
                    nar_size: r.u64()?,
                })
            },
        )
    }

    /// Runs one request. Afterwards the connection is in step if it succeeded, or if the daemon
    /// refused and still answers.
    fn request<T>(
        &mut self,
        send: impl FnOnce(&mut Writer<W>) -> Result<(), Error>,
        receive: impl FnOnce(&mut Reader<R>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(Error::Unusable);
        }
        self.reader.begin_reply();
        let sent = send(&mut self.writer).and_then(|()| self.writer.flush());
        match sent {
            Ok(()) => {}
            // The daemon has hung up; perhaps it said why.
            Err(Error::Io(e)) if is_hangup(&e) => {
                return Err(match self.until_last() {
                    Err(said @ Error::Remote(_)) => said,
                    _ => Error::Io(e),
                });
            }
            Err(e) => return Err(e),
        }
        match self.until_last() {
            Ok(()) => {}
            Err(e @ Error::Remote(_)) => {
                self.in_step = self.still_answers();
                return Err(e);
            }
            Err(e) => return Err(e),
        }
        let result = receive(&mut self.reader)?;
        self.in_step = true;
        Ok(result)
    }

    /// Asks for the valid ones of no paths.
    fn still_answers(&mut self) -> bool {
        let mut ask = || {
            self.writer.u64(QUERY_VALID_PATHS)?;
            self.writer.u64(0)?;
            self.writer.bool(false)?;
            self.writer.flush()?;
            self.until_last()?;
            self.reader.words("valid paths", 0)
        };
        ask().is_ok()
    }

    /// Reads log messages up to the result.
    fn until_last(&mut self) -> Result<(), Error> {
        loop {
            let r = &mut self.reader;
            match r.u64()? {
                LOG_LAST => return Ok(()),
                LOG_ERROR => return Err(Error::Remote(self.remote_error()?)),
                LOG_NEXT => {
                    let line = r.bytes("log message", frame::TEXT_BYTES_MAX)?;
                    self.say(&line);
                }
                LOG_START => {
                    let (_id, _level, _kind) = (r.u64()?, r.u64()?, r.u64()?);
                    let line = r.bytes("activity", frame::TEXT_BYTES_MAX)?;
                    self.skip_fields()?;
                    let _parent = self.reader.u64()?;
                    self.say(&line);
                }
                LOG_STOP => {
                    let _id = r.u64()?;
                }
                LOG_RESULT => {
                    let (_id, kind) = (r.u64()?, r.u64()?);
                    let line = self.skip_fields()?;
                    if kind == RESULT_BUILD_LOG_LINE {
                        self.say(&line);
                    }
                }
                tag @ (LOG_READ | LOG_WRITE) => {
                    return Err(Error::protocol(
                        "a log message",
                        format!("a request for data ({tag:#x})"),
                    ))
                }
                tag => return Err(Error::protocol("a log message", format!("{tag:#x}"))),
            }
        }
    }

    fn remote_error(&mut self) -> Result<String, Error> {
        let r = &mut self.reader;
        let _type = r.word("error type")?;
        let _level = r.u64()?;
        let _name = r.text("error name")?;
        let message = r.text("error message")?;
        no_position(r)?;
        for _ in 0..r.count("traces", TRACES_MAX)? {
            no_position(r)?;
            let _trace = r.text("trace")?;
        }
        Ok(message)
    }

    /// Reads the fields of an activity or result; gives the first text among them.
    fn skip_fields(&mut self) -> Result<Vec<u8>, Error> {
        let r = &mut self.reader;
        let mut text = None;
        for _ in 0..r.count("fields", FIELDS_MAX)? {
            match r.u64()? {
                0 => {
                    let _number = r.u64()?;
                }
                1 => {
                    let field = r.bytes("field", frame::TEXT_BYTES_MAX)?;
                    text.get_or_insert(field);
                }
                n => return Err(Error::protocol("a field of type 0 or 1", n.to_string())),
            }
        }
        Ok(text.unwrap_or_default())
    }

    fn say(&mut self, line: &[u8]) {
        if let (Some(log), false) = (&mut self.log, line.is_empty()) {
            log(line);
        }
    }
}

fn is_hangup(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn no_position<R: Read>(r: &mut Reader<R>) -> Result<(), Error> {
    match r.u64()? {
        0 => Ok(()),
        n => Err(Error::protocol("no error position (0)", n.to_string())),
    }
}

fn expect_one<R: Read>(r: &mut Reader<R>, what: &str) -> Result<(), Error> {
    match r.u64()? {
        1 => Ok(()),
        n => Err(Error::protocol(format!("1 after {what}"), n.to_string())),
    }
}

fn write_paths<W: Write, T: AsRef<str>>(w: &mut Writer<W>, paths: &[T]) -> Result<(), Error> {
    w.u64(paths.len() as u64)?;
    paths.iter().try_for_each(|path| w.string(path.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::hash::sha256;
    use crate::wire::ResultStatus;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    const A: &str = "/nix/store/0a000000000000000000000000000000-a";
    const B: &str = "/nix/store/0b000000000000000000000000000000-b";

    /// What a daemon sends.
    #[derive(Default)]
    struct Reply(Vec<u8>);

    impl Reply {
        fn greeting(version: u64) -> Reply {
            let reply = Reply::default().n(SERVER_MAGIC).n(version);
            match version & 0xff {
                33.. => reply.s("2.8.0").n(LOG_LAST),
                _ => reply.n(LOG_LAST),
            }
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
        fn error(self, message: &str) -> Reply {
            let reply = self.n(LOG_ERROR).s("Error").n(0).s("Error").s(message).n(0);
            reply.n(1).n(0).s("while trying")
        }
        fn client(self) -> WorkerClient<std::io::Cursor<Vec<u8>>, Vec<u8>> {
            WorkerClient::handshake(std::io::Cursor::new(self.0), Vec::new()).unwrap()
        }
    }

    #[test]
    fn greetings() {
        assert_eq!(Reply::greeting(0x126).client().nix_version(), Some("2.8.0"));
        assert_eq!(Reply::greeting(0x11b).client().nix_version(), None);
        let refusal = |reply: Reply| {
            WorkerClient::handshake(reply.0.as_slice(), Vec::new())
                .err()
                .unwrap()
                .to_string()
        };
        for version in [0x11a, 0x222, 0] {
            let error = refusal(Reply::greeting(version));
            assert!(error.contains("need 1.27 or a later 1.x"), "{error}");
        }
        let error = refusal(Reply(b"HTTP/1.1 400 Bad Request".to_vec()));
        assert!(error.contains("got 'HTTP/1.1 400 Bad Request'"), "{error}");
        // A daemon may refuse right in the greeting.
        let busy = Reply::default()
            .n(SERVER_MAGIC)
            .n(0x122)
            .s("2.8.0")
            .error("too busy");
        assert_eq!(refusal(busy), "too busy");
    }

    #[test]
    fn an_error_and_a_daemon_that_still_answers() {
        let reply = Reply::greeting(0x122)
            .error("\x1b[31mno\x1b[0m such path")
            .n(LOG_LAST)
            .n(0);
        let mut client = reply.n(LOG_LAST).n(1).client();
        let error = client.ensure_path(A).unwrap_err();
        assert!(matches!(&error, Error::Remote(text) if text == "no such path"));
        assert!(client.usable());
        assert!(client.is_valid_path(A).unwrap());
    }

    #[test]
    fn an_error_twice_and_the_end() {
        let mut client = Reply::greeting(0x122)
            .error("bad path")
            .error("bad path")
            .client();
        assert!(matches!(client.is_valid_path("/x"), Err(Error::Remote(_))));
        assert!(!client.usable());
        assert!(matches!(client.is_valid_path(A), Err(Error::Unusable)));
        let mut client = Reply::greeting(0x122).error("bad path").client();
        assert!(matches!(client.is_valid_path("/x"), Err(Error::Remote(_))));
        assert!(!client.usable());
    }

    #[test]
    fn an_error_is_read_although_writing_failed() {
        struct Closed(usize);
        impl Write for Closed {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                match self.0.checked_sub(1) {
                    Some(left) => self.0 = left,
                    None => return Err(io::Error::from(io::ErrorKind::BrokenPipe)),
                }
                Ok(buf.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let reply = Reply::greeting(0x122).error("bad path").0;
        // The greeting takes two writes.
        let mut client = WorkerClient::handshake(reply.as_slice(), Closed(2)).unwrap();
        let error = client.is_valid_path("/x").unwrap_err();
        assert!(matches!(error, Error::Remote(text) if text == "bad path"));
        let reply = Reply::greeting(0x122).0;
        let mut client = WorkerClient::handshake(reply.as_slice(), Closed(2)).unwrap();
        let error = client.is_valid_path("/x").unwrap_err();
        assert!(matches!(error, Error::Io(e) if e.kind() == io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn an_error_in_place_of_a_nar() {
        let reply = Reply::greeting(0x122)
            .n(LOG_LAST)
            .error("not valid")
            .error("not valid");
        let mut client = reply.client();
        let error = client.nar_from_path(A, ()).err().unwrap();
        assert!(matches!(error, Error::Remote(text) if text == "not valid"));
        assert!(!client.usable());
    }

    #[test]
    fn log_messages_come_first() {
        let reply = Reply::greeting(0x122).n(LOG_NEXT).s("one\n");
        let reply = reply
            .n(LOG_START)
            .n(1)
            .n(3)
            .n(105)
            .s("building")
            .n(2)
            .n(1)
            .s(A)
            .n(0)
            .n(1);
        let reply = reply.n(0).n(LOG_RESULT).n(1).n(101).n(1).n(1).s("hello");
        let reply = reply
            .n(LOG_RESULT)
            .n(1)
            .n(105)
            .n(1)
            .n(0)
            .n(7)
            .n(LOG_STOP)
            .n(1);
        let mut client = reply.n(LOG_LAST).n(1).client();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        client.set_log(Some(Box::new(move |line| {
            sink.lock()
                .unwrap()
                .push(String::from_utf8_lossy(line).into_owned());
        })));
        assert!(client.is_valid_path(A).unwrap());
        assert_eq!(*lines.lock().unwrap(), ["one\n", "building", "hello"]);
        for tag in [LOG_READ, LOG_WRITE, 0, u64::MAX] {
            let mut client = Reply::greeting(0x122).n(tag).client();
            let error = client.is_valid_path(A).unwrap_err();
            assert!(error.to_string().contains("expected a log message"));
            assert!(!client.usable());
        }
    }

    #[test]
    fn results_need_a_new_daemon() {
        let mut client = Reply::greeting(0x121).client();
        let error = client.build_paths_with_results(&[A]).unwrap_err();
        assert!(error.to_string().contains("before 1.34"), "{error}");
        assert!(client.usable());
        let reply = Reply::greeting(0x122)
            .n(LOG_LAST)
            .n(1)
            .s("x!out")
            .n(9)
            .s("")
            .n(0)
            .n(0);
        let mut client = reply.n(0).n(0).n(0).client();
        let results = client.build_paths_with_results(&["x!out"]).unwrap();
        assert_eq!(results[0].1.status, ResultStatus::MiscFailure);
    }

    #[test]
    fn a_bad_nar_is_the_callers_fault() {
        let info = ValidPathInfo {
            path: A.to_owned(),
            nar_hash: sha256(b"abcd"),
            nar_size: 4,
            ..ValidPathInfo::default()
        };
        for nar in [&b"abc"[..], b"abce", b"abcde"] {
            let reply = Reply::greeting(0x122).error("bad").n(LOG_LAST).n(0);
            let mut client = reply.client();
            let result = client.add_to_store_nar(&info, false, true, &mut &nar[..]);
            assert!(matches!(result, Err(Error::Source(_))));
            assert!(client.usable());
            // The frames are ended in any case.
            assert!(client
                .get_mut()
                .1
                .ends_with(&[&[0; 8][..], &31u64.to_le_bytes(), &[0; 8], &[0; 8]].concat()));
        }
    }

    proptest! {
        #[test]
        fn any_daemon_is_answered(bytes: Vec<u8>, words in prop::collection::vec(0u64..4, 0..40)) {
            let _ = WorkerClient::handshake(bytes.as_slice(), Vec::new());
            let words: Vec<u8> = words.iter().flat_map(|n| n.to_le_bytes()).collect();
            for tag in [LOG_LAST, LOG_ERROR, LOG_START, LOG_RESULT, LOG_NEXT] {
                for bytes in [&bytes, &words] {
                    let client = || {
                        let mut reply = Reply::greeting(0x122).n(tag);
                        reply.0.extend_from_slice(bytes);
                        reply.client()
                    };
                    let _ = client().query_path_info(A);
                    let _ = client().query_valid_paths(&[A, B], false);
                    let _ = client().query_derivation_output_map(A);
                    let _ = client().query_missing(&[A]);
                    let _ = client().build_paths_with_results(&[A]);
                    let _ = client().build_paths(&[A]);
                    if let Ok(dump) = client().nar_from_path(A, ()) {
                        prop_assert!(dump.finish().is_err());
                    }
                }
            }
        }
    }
}
