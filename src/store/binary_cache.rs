//! A binary cache that hydrad writes and reads itself: NARs, narinfos, listings and logs over [`Objects`].
//!
//! Knows the layout of a cache and the order in which its parts become visible: the NAR, then its listing, then the
//! narinfo; whoever calls takes care that references come before referrers. A NAR is compressed while it arrives, into
//! a temporary file, so memory does not grow with it. Does not know where the bytes come from, nor other stores.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::closure::Closure;
use super::compress::{self, Compressor, Encoding, How, Method};
use super::local::PathMeta;
use super::objects::{Body, Counts, Existing, Headers, ObjectError, Objects};
use super::presence::{Known, Lifetimes, Presence};
use super::uri::{Params, UriError};
use crate::base::lock::lock;
use crate::model::UnixSecs;
use crate::nix::hash::{nix32_encode, sha256_text, HashingWriter};
use crate::nix::listing::Listing;
use crate::nix::nar::Parser;
use crate::nix::narinfo::{
    fingerprint, narinfo_key, CacheInfo, NarInfo, CACHE_INFO_BYTES_MAX, NARINFO_BYTES_MAX,
};
use crate::nix::realisation::{realisation_key, OutputId, Realisation, REALISATION_BYTES_MAX};
use crate::nix::signing::{is_signature, SecretKey};
use crate::nix::store_path::{base_name, hash_part};
use crate::nix::{StoreDir, ValidPathInfo};
use crate::sys::child::plain_error;
use crate::sys::kill::KillSwitch;

/// The key of what a cache says of itself.
const CACHE_INFO: &str = "nix-cache-info";
/// A key file at most, bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes moved at once.
const CHUNK: usize = 128 << 10;
/// How long a waiting thread goes without looking at its kill switch.
const KILL_CHECK: Duration = Duration::from_millis(200);
/// Signatures of others that are kept with a path.
const FOREIGN_SIGNATURES_MAX: usize = 32;
/// The priority that is written into a new cache; as nix-serve's, before cache.nixos.org's 40.
const PRIORITY: i32 = 30;

/// The parameters of Nix's binary caches that hydrad understands.
pub const PARAMS: &[&str] = &[
    "compression",
    "compression-level",
    "parallel-compression",
    "secret-key",
    "secret-keys",
    "write-nar-listing",
    "want-mass-query",
    "priority",
    "ls-compression",
    "log-compression",
    "narinfo-compression",
];

/// Why a binary cache cannot be used at all: the settings have to change.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Uri(#[from] UriError),
    #[error("{0}")]
    Objects(#[from] ObjectError),
    /// A secret key's file.
    #[error("the secret key {path}: {why}")]
    Key { path: String, why: String },
    /// A cache of another store.
    #[error(
        "{place} is a cache for the store directory {found}, not {wanted}; choose another place in store_uri"
    )]
    OtherStore {
        place: String,
        found: String,
        wanted: String,
    },
}

/// How a cache is to be written.
#[derive(Debug)]
pub struct Options {
    pub how: How,
    pub keys: Vec<SecretKey>,
    pub listing: bool,
    want_mass_query: bool,
    priority: i32,
    ls: Encoding,
    log: Encoding,
    narinfo: Encoding,
}

impl Options {
    /// Takes what it knows of a URI's parameters and reads the key files.
    ///
    /// # Errors
    /// [`OpenError::Uri`] for a value that makes no sense, [`OpenError::Key`] for a file that is no key.
    pub fn take(params: &mut Params) -> Result<Options, OpenError> {
        let method = params
            .take_as(
                "compression",
                "hydrad writes xz, zstd, bzip2 or none",
                Method::parse,
            )?
            .unwrap_or(Method::Xz);
        let levels = method.levels();
        let why = match method {
            Method::None => "without compression there is no level; leave it out".to_owned(),
            _ => format!(
                "{} has levels from {} to {}",
                method.name(),
                levels.start(),
                levels.end()
            ),
        };
        let level = params.take_as("compression-level", &why, |text| {
            let level: i32 = text.parse().ok()?;
            // Nix's own way to say "the usual one".
            (level == -1 || (method != Method::None && levels.contains(&level))).then_some(level)
        })?;
        if params.take_bool("index-debug-info")? == Some(true) {
            return Err(OpenError::Uri(UriError::Value {
                name: "index-debug-info".to_owned(),
                value: "true".to_owned(),
                why: "hydrad does not write an index of debug information; leave it out".to_owned(),
            }));
        }
        let encoding = |params: &mut Params, name| {
            let why = "hydrad writes br, zstd or none";
            params
                .take_as(name, why, Encoding::parse)
                .map(Option::unwrap_or_default)
        };
        let mut files: Vec<String> = params.take("secret-key").into_iter().collect();
        if let Some(list) = params.take("secret-keys") {
            files.extend(list.split(',').map(str::to_owned));
        }
        Ok(Options {
            how: How {
                method,
                level: level.filter(|&level| level != -1),
                parallel: params.take_bool("parallel-compression")?.unwrap_or(false),
            },
            listing: params.take_bool("write-nar-listing")?.unwrap_or(false),
            want_mass_query: params.take_bool("want-mass-query")?.unwrap_or(true),
            priority: params.take_number("priority")?.unwrap_or(PRIORITY),
            ls: encoding(params, "ls-compression")?,
            log: encoding(params, "log-compression")?,
            narinfo: encoding(params, "narinfo-compression")?,
            keys: files
                .iter()
                .filter(|file| !file.is_empty())
                .map(|file| read_key(file))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether something is written with a content encoding, which only HTTP clients are told of.
    pub fn is_encoded(&self) -> bool {
        [self.ls, self.log, self.narinfo]
            .iter()
            .any(|encoding| *encoding != Encoding::None)
    }
}

fn read_key(path: &str) -> Result<SecretKey, OpenError> {
    let wrong = |why: String| OpenError::Key {
        path: path.to_owned(),
        why,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| {
            wrong(format!(
                "{}; hydrad's user must be able to read it",
                plain_error(&error)
            ))
        })?;
    SecretKey::parse(&text).map_err(|error| {
        wrong(format!(
            "{error}; `nix-store --generate-binary-cache-key NAME SECRET PUBLIC` makes one"
        ))
    })
}

/// What was done since the start, for Hydra's `store` section of `SystemStatus` and for metrics.
#[derive(Default, Debug)]
pub struct Counters {
    /// Narinfos read from the cache.
    pub nar_info_read: AtomicU64,
    /// Answers that were remembered.
    pub nar_info_read_averted: AtomicU64,
    /// Narinfos asked for that were not there.
    pub nar_info_missing: AtomicU64,
    pub nar_info_write: AtomicU64,
    pub nar_read: AtomicU64,
    pub nar_read_bytes: AtomicU64,
    pub nar_read_compressed_bytes: AtomicU64,
    pub nar_write: AtomicU64,
    /// NARs whose file was there already.
    pub nar_write_averted: AtomicU64,
    pub nar_write_bytes: AtomicU64,
    pub nar_write_compressed_bytes: AtomicU64,
    pub nar_write_compression_ms: AtomicU64,
    pub log_write: AtomicU64,
    /// Logs that could not be put into the cache.
    pub log_write_failed: AtomicU64,
}

/// The same at one moment, with the requests that came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheMetrics {
    /// The place, such as `s3://bucket`.
    pub place: String,
    pub nar_info_read: u64,
    pub nar_info_read_averted: u64,
    pub nar_info_missing: u64,
    pub nar_info_write: u64,
    /// Answers remembered.
    pub remembered: u64,
    pub nar_read: u64,
    pub nar_read_bytes: u64,
    pub nar_read_compressed_bytes: u64,
    pub nar_write: u64,
    pub nar_write_averted: u64,
    pub nar_write_bytes: u64,
    pub nar_write_compressed_bytes: u64,
    pub nar_write_compression_ms: u64,
    pub log_write: u64,
    pub log_write_failed: u64,
    pub requests: Counts,
}

impl CacheMetrics {
    /// What part of the bytes was saved by compressing; 0 without any.
    pub fn compression_savings(&self) -> f64 {
        match self.nar_write_bytes {
            0 => 0.0,
            bytes => 1.0 - self.nar_write_compressed_bytes as f64 / bytes as f64,
        }
    }

    /// MiB a second; 0 without any.
    pub fn compression_speed(&self) -> f64 {
        mib_per_sec(self.nar_write_bytes, self.nar_write_compression_ms)
    }
}

/// Bytes in milliseconds as MiB a second; 0 in no time.
pub fn mib_per_sec(bytes: u64, ms: u64) -> f64 {
    match ms {
        0 => 0.0,
        ms => bytes as f64 / ms as f64 * 1000.0 / f64::from(1 << 20),
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Why the cache cannot do what is asked now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{0}")]
    Objects(#[from] ObjectError),
    /// It was to be there.
    #[error("{path} is not in the binary cache {place} any more")]
    Gone { path: String, place: String },
    /// Its bytes are not what the narinfo says, or of a kind that hydrad cannot read.
    #[error("{path} in the binary cache {place} cannot be read: {why}")]
    Damaged {
        path: String,
        place: String,
        why: String,
    },
    /// The run was ended meanwhile.
    #[error("ended while waiting for the binary cache")]
    Killed,
}

pub struct BinaryCache {
    objects: Box<dyn Objects>,
    store_dir: StoreDir,
    options: Options,
    presence: Presence,
    counters: Counters,
    /// Uploads that may begin.
    permits: Gate,
    /// Paths being written.
    claimed: Mutex<HashSet<String>>,
    released: Condvar,
}

impl BinaryCache {
    /// Reads `nix-cache-info`, or writes it into a new cache (nothing without `writes`). At most `uploads_max` NARs are written at once.
    ///
    /// # Errors
    /// [`OpenError`]: the place cannot be read or written, or is a cache for another store.
    pub fn open(
        objects: Box<dyn Objects>,
        store_dir: StoreDir,
        options: Options,
        lifetimes: Lifetimes,
        uploads_max: usize,
        writes: bool,
    ) -> Result<BinaryCache, OpenError> {
        let info = CacheInfo {
            store_dir: store_dir.0.clone(),
            want_mass_query: options.want_mass_query,
            priority: options.priority,
        };
        let cache = BinaryCache {
            objects,
            store_dir,
            options,
            presence: Presence::new(lifetimes),
            counters: Counters::default(),
            permits: Gate::new(uploads_max.max(1)),
            claimed: Mutex::default(),
            released: Condvar::new(),
        };
        let text = match cache.objects.get(CACHE_INFO, CACHE_INFO_BYTES_MAX)? {
            Some(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let found = CacheInfo::store_dir_of(&text);
                if let Some(found) = found.filter(|found| *found != cache.store_dir.as_str()) {
                    return Err(OpenError::OtherStore {
                        place: cache.describe(),
                        found: found.to_owned(),
                        wanted: cache.store_dir.0.clone(),
                    });
                }
                text
            }
            None => info.text(),
        };
        if !writes {
            return Ok(cache);
        }
        // Written back as it was too: that shows whether the place can be written, before anything depends on it.
        cache.objects.put(
            CACHE_INFO,
            Body::Bytes(text.as_bytes()),
            Headers {
                content_type: "text/x-nix-cache-info",
                content_encoding: "",
            },
            Existing::Replace,
        )?;
        Ok(cache)
    }

    /// The place, for messages.
    pub fn describe(&self) -> String {
        self.objects.describe()
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn objects(&self) -> &dyn Objects {
        &*self.objects
    }

    pub fn metrics(&self) -> CacheMetrics {
        let of = &self.counters;
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheMetrics {
            place: self.describe(),
            nar_info_read: now(&of.nar_info_read),
            nar_info_read_averted: now(&of.nar_info_read_averted),
            nar_info_missing: now(&of.nar_info_missing),
            nar_info_write: now(&of.nar_info_write),
            remembered: self.remembered() as u64,
            nar_read: now(&of.nar_read),
            nar_read_bytes: now(&of.nar_read_bytes),
            nar_read_compressed_bytes: now(&of.nar_read_compressed_bytes),
            nar_write: now(&of.nar_write),
            nar_write_averted: now(&of.nar_write_averted),
            nar_write_bytes: now(&of.nar_write_bytes),
            nar_write_compressed_bytes: now(&of.nar_write_compressed_bytes),
            nar_write_compression_ms: now(&of.nar_write_compression_ms),
            log_write: now(&of.log_write),
            log_write_failed: now(&of.log_write_failed),
            requests: self.objects.requests().counts(),
        }
    }

    /// Answers remembered.
    pub fn remembered(&self) -> usize {
        self.presence.len()
    }

    /// Whether anything was remembered of it.
    pub fn forget(&self, path: &str) -> bool {
        self.presence.forget(path)
    }

    /// How many answers were remembered.
    pub fn forget_all(&self) -> usize {
        self.presence.forget_all()
    }

    /// It is there, but what it refers to is not: counts as absent until it is written again.
    pub fn distrust(&self, path: &str) {
        self.presence.put(path, Known::Broken);
    }

    /// What the cache has of a path; from memory, if that may still be believed.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn lookup(&self, path: &str) -> Result<Option<Arc<PathMeta>>, CacheError> {
        if let Some(known) = self.presence.get(path) {
            count(&self.counters.nar_info_read_averted, 1);
            return Ok(match known {
                Known::There(meta) => Some(meta),
                Known::Absent | Known::Broken => None,
            });
        }
        match self.narinfo(path)? {
            None => {
                self.presence.put(path, Known::Absent);
                Ok(None)
            }
            Some(found) => Ok(Some(self.remember(&found.info))),
        }
    }

    /// The path of an output that is known only after the build; `None` if the cache does not say. A damaged answer
    /// counts as none: it is written again then.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn realisation(&self, id: &OutputId) -> Result<Option<String>, CacheError> {
        let key = realisation_key(id);
        let Some(bytes) = self.objects.get(&key, REALISATION_BYTES_MAX)? else {
            return Ok(None);
        };
        let found = String::from_utf8(bytes)
            .map_err(|_| "it is no text".to_owned())
            .and_then(|text| Realisation::parse(&text).map_err(|error| error.to_string()));
        match found {
            Ok(found) if found.id == *id => Ok(Some(self.store_dir.join(&found.out_path))),
            Ok(found) => {
                log::warn!(
                    "{key} in {} is about {}: it counts as missing",
                    self.describe(),
                    found.id
                );
                Ok(None)
            }
            Err(why) => {
                log::warn!("{key} in {}: {why}: it counts as missing", self.describe());
                Ok(None)
            }
        }
    }

    /// Says where such an output is, signed like everything else in the cache.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_realisation(&self, mut realisation: Realisation) -> Result<(), CacheError> {
        let text = realisation.fingerprint();
        let keys = self.options.keys.iter();
        realisation.signatures = keys.map(|key| key.sign(&text)).collect();
        let headers = Headers {
            content_type: "application/json",
            ..Headers::default()
        };
        self.objects.put(
            &realisation_key(&realisation.id),
            Body::Bytes(realisation.json().as_bytes()),
            headers,
            Existing::Replace,
        )?;
        Ok(())
    }

    fn remember(&self, info: &ValidPathInfo) -> Arc<PathMeta> {
        let meta = Arc::new(PathMeta::new(&info.path, &info.references, info.nar_size));
        self.presence.put(&info.path, Known::There(meta.clone()));
        meta
    }

    /// Reads a narinfo, whatever is remembered. A damaged one counts as none: it is written again then.
    fn narinfo(&self, path: &str) -> Result<Option<NarInfo>, CacheError> {
        let key = narinfo_key(hash_part(path));
        let Some(bytes) = self.objects.get(&key, NARINFO_BYTES_MAX)? else {
            count(&self.counters.nar_info_missing, 1);
            return Ok(None);
        };
        count(&self.counters.nar_info_read, 1);
        // Our own may be encoded; a bucket answers with the bytes as they were put.
        let text = String::from_utf8(self.decoded(bytes))
            .map_err(|_| "it is no text".to_owned())
            .and_then(|text| {
                NarInfo::parse(&self.store_dir, &text).map_err(|error| error.to_string())
            });
        match text {
            Ok(found) if found.info.path == path => Ok(Some(found)),
            Ok(found) => {
                log::warn!(
                    "{key} in {} is about {}, not {path}: it counts as missing",
                    self.describe(),
                    found.info.path
                );
                Ok(None)
            }
            Err(why) => {
                log::warn!("{key} in {}: {why}: it counts as missing", self.describe());
                Ok(None)
            }
        }
    }

    fn decoded(&self, bytes: Vec<u8>) -> Vec<u8> {
        let encoding = self.options.narinfo;
        if encoding == Encoding::None || bytes.starts_with(b"StorePath:") {
            return bytes;
        }
        let mut plain = Vec::new();
        let read = compress::decompress(encoding.header(), io::Cursor::new(bytes.clone()))
            .ok()
            .flatten()
            .and_then(|reader| reader.take(NARINFO_BYTES_MAX).read_to_end(&mut plain).ok());
        if read.is_some() {
            plain
        } else {
            bytes
        }
    }

    /// [`BinaryCache::lookup`] for many, several at a time where that is faster.
    ///
    /// # Errors
    /// The first that could not be found out.
    pub fn lookup_all(&self, paths: &[&str]) -> Result<HashMap<String, Arc<PathMeta>>, CacheError> {
        let found = Mutex::new(HashMap::with_capacity(paths.len()));
        let next = AtomicUsize::new(0);
        let ask = || -> Result<(), CacheError> {
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(meta) = self.lookup(path)? {
                    lock(&found).insert((*path).to_owned(), meta);
                }
            }
            Ok(())
        };
        // What is remembered costs no thread.
        let unknown = paths
            .iter()
            .filter(|path| self.presence.get(path).is_none())
            .count();
        let threads = self.objects.parallel_max().min(unknown.div_ceil(4));
        if threads <= 1 {
            ask()?;
        } else {
            std::thread::scope(|scope| {
                let helpers: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
                helpers
                    .into_iter()
                    .try_for_each(|helper| helper.join().unwrap_or(Ok(())))
            })?;
            // Whatever a helper that panicked had taken.
            next.store(0, Ordering::Relaxed);
            ask()?;
        }
        Ok(found
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// The closure of these paths, references before referrers.
    ///
    /// # Errors
    /// [`CacheError::Gone`] for a path of it that is not there.
    pub fn closure<S: AsRef<str>>(&self, paths: &[S]) -> Result<Vec<Arc<PathMeta>>, CacheError> {
        // Level by level first, so that a bucket is asked for many at once.
        let mut seen: HashSet<Arc<str>> = paths.iter().map(|path| path.as_ref().into()).collect();
        let mut level: Vec<Arc<str>> = seen.iter().cloned().collect();
        let mut known: HashMap<String, Arc<PathMeta>> = HashMap::new();
        while !level.is_empty() {
            let asked: Vec<&str> = level.iter().map(|path| &**path).collect();
            let found = self.lookup_all(&asked)?;
            if let Some(path) = asked.iter().find(|path| !found.contains_key(**path)) {
                return Err(self.gone(path));
            }
            level = found
                .values()
                .flat_map(|meta| meta.references.iter())
                .filter(|reference| seen.insert((*reference).clone()))
                .cloned()
                .collect();
            known.extend(found);
        }
        let mut closure = Closure::default();
        for path in paths {
            closure.add(path.as_ref(), |path| match known.get(path) {
                Some(meta) => Ok(meta.clone()),
                None => Err(self.gone(path)),
            })?;
        }
        Ok(closure.paths())
    }

    fn gone(&self, path: &str) -> CacheError {
        CacheError::Gone {
            path: path.to_owned(),
            place: self.describe(),
        }
    }

    /// When a path was put into the cache, by the clock of its place.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn modified(&self, path: &str) -> Result<Option<UnixSecs>, CacheError> {
        let stat = self.objects.stat(&narinfo_key(hash_part(path)))?;
        Ok(stat.and_then(|stat| stat.modified))
    }

    /// Gives what is said of a path and its NAR to `taker`, whose result comes back. The NAR's hash is for whoever takes
    /// it to check.
    ///
    /// # Errors
    /// [`CacheError::Gone`] if the narinfo or the NAR is not there any more, which is then not believed any longer.
    pub fn read_nar<T>(
        &self,
        path: &str,
        taker: impl FnOnce(&ValidPathInfo, &mut dyn Read) -> T,
    ) -> Result<T, CacheError> {
        // Whoever removes one usually removes many: nothing that is remembered is believed after this.
        let gone = || {
            self.presence.forget_all();
            self.gone(path)
        };
        let found = self.narinfo(path)?.ok_or_else(gone)?;
        let file = self.objects.open(&found.url)?.ok_or_else(gone)?;
        let damaged = |why: String| CacheError::Damaged {
            path: path.to_owned(),
            place: self.describe(),
            why,
        };
        let mut nar = compress::decompress(&found.compression, file)
            .map_err(|error| damaged(plain_error(&error)))?
            .ok_or_else(|| damaged(format!("unknown compression '{}'", found.compression)))?
            .take(found.info.nar_size);
        let taken = taker(&found.info, &mut nar);
        count(&self.counters.nar_read, 1);
        count(&self.counters.nar_read_bytes, found.info.nar_size);
        count(
            &self.counters.nar_read_compressed_bytes,
            found.file_size.unwrap_or(0),
        );
        Ok(taken)
    }

    /// Waits until nobody else writes this path; whoever holds the claim looks again whether it is there.
    ///
    /// # Errors
    /// [`CacheError::Killed`].
    pub fn claim(&self, path: &str, kill: &KillSwitch) -> Result<Claim<'_>, CacheError> {
        let mut claimed = self.lock_claimed();
        while claimed.contains(path) {
            if kill.is_thrown() {
                return Err(CacheError::Killed);
            }
            claimed = self
                .released
                .wait_timeout(claimed, KILL_CHECK)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        claimed.insert(path.to_owned());
        Ok(Claim {
            cache: self,
            path: path.to_owned(),
        })
    }

    fn lock_claimed(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.claimed)
    }

    /// Begins to write a NAR, once there is room for one more at the same time.
    ///
    /// # Errors
    /// [`CacheError::Killed`], or no temporary file.
    pub fn begin(&self, kill: &KillSwitch) -> Result<Upload<'_>, CacheError> {
        let permit = self.permits.enter(kill).ok_or(CacheError::Killed)?;
        let (file, path) = self.objects.staging()?;
        let temporary = Temporary(path);
        let file = HashingWriter::new(BufWriter::with_capacity(CHUNK, file));
        let out = Compressor::new(self.options.how, file)
            .map_err(|error| temporary.failed("compress into", &error))?;
        Ok(Upload {
            cache: self,
            _permit: permit,
            temporary,
            out: HashingWriter::new(out),
            listing: self
                .options
                .listing
                .then(|| (Parser::new(), Listing::new())),
            compressing: Duration::ZERO,
        })
    }

    /// Puts a log into the cache, where Nix and Hydra look for the log of a derivation.
    ///
    /// # Errors
    /// When it could not be read or written.
    pub fn put_log(&self, drv: &str, log: &mut dyn Read) -> Result<(), String> {
        let mut put = || -> Result<(), String> {
            let (file, path) = self.objects.staging().map_err(|error| error.to_string())?;
            let temporary = Temporary(path);
            let mut file = BufWriter::with_capacity(CHUNK, file);
            self.options
                .log
                .encode(log, &mut file)
                .and_then(|()| file.flush())
                .map_err(|error| plain_error(&error))?;
            drop(file);
            let headers = Headers {
                content_type: "text/plain; charset=utf-8",
                content_encoding: self.options.log.header(),
            };
            self.objects
                .put(
                    &format!("log/{}", base_name(drv)),
                    Body::File(&temporary.0),
                    headers,
                    Existing::Replace,
                )
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        let result = put();
        match result {
            Ok(()) => count(&self.counters.log_write, 1),
            Err(_) => count(&self.counters.log_write_failed, 1),
        }
        result
    }

    fn put_small(
        &self,
        key: &str,
        text: &str,
        content_type: &str,
        encoding: Encoding,
    ) -> Result<(), CacheError> {
        let mut bytes = Vec::new();
        let body = if encoding == Encoding::None {
            text.as_bytes()
        } else {
            encoding
                .encode(&mut text.as_bytes(), &mut bytes)
                .map_err(|error| ObjectError {
                    doing: "compress",
                    what: key.to_owned(),
                    why: plain_error(&error),
                })?;
            &bytes
        };
        let headers = Headers {
            content_type,
            content_encoding: encoding.header(),
        };
        self.objects
            .put(key, Body::Bytes(body), headers, Existing::Replace)?;
        Ok(())
    }
}

/// The right to write a path.
pub struct Claim<'a> {
    cache: &'a BinaryCache,
    path: String,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.cache.lock_claimed().remove(&self.path);
        self.cache.released.notify_all();
    }
}

/// Why a NAR did not get into the cache.
#[derive(Debug)]
pub enum UploadError {
    /// Where the bytes came from.
    Source(io::Error),
    /// The bytes are not those that were announced.
    Mismatch(String),
    Cache(CacheError),
}

impl From<CacheError> for UploadError {
    fn from(error: CacheError) -> UploadError {
        UploadError::Cache(error)
    }
}

impl From<ObjectError> for UploadError {
    fn from(error: ObjectError) -> UploadError {
        UploadError::Cache(error.into())
    }
}

type Packed = HashingWriter<BufWriter<File>>;

/// A NAR on its way into the cache. Dropped before its end it leaves nothing behind.
pub struct Upload<'a> {
    cache: &'a BinaryCache,
    _permit: Permit<'a>,
    temporary: Temporary,
    out: HashingWriter<Compressor<Packed>>,
    listing: Option<(Parser, Listing)>,
    compressing: Duration,
}

impl Upload<'_> {
    /// Takes all that `nar` gives.
    ///
    /// # Errors
    /// [`UploadError::Source`] when reading fails; [`UploadError::Cache`] when the disk does.
    pub fn fill(&mut self, nar: &mut dyn Read) -> Result<(), UploadError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match nar.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => self.write_all(&chunk[..n]).map_err(|error| {
                    UploadError::Cache(self.temporary.failed("write", &error).into())
                })?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(UploadError::Source(error)),
            }
        }
    }

    /// Makes the path visible: the NAR under the hash of its file, the listing, and the signed narinfo.
    ///
    /// # Errors
    /// [`UploadError::Mismatch`] when these are not the bytes that `info` announced; nothing is written then.
    pub fn finish(self, info: &ValidPathInfo) -> Result<Arc<PathMeta>, UploadError> {
        let Upload {
            cache,
            temporary,
            out,
            listing,
            mut compressing,
            ..
        } = self;
        let (out, nar_hash, nar_size) = out.finish();
        if nar_hash != info.nar_hash || nar_size != info.nar_size {
            return Err(UploadError::Mismatch(format!(
                "the NAR of {} has {nar_size} bytes and the hash {}, not {} and {} as was said",
                info.path,
                sha256_text(&nar_hash),
                info.nar_size,
                sha256_text(&info.nar_hash)
            )));
        }
        let began = Instant::now();
        let packed = out
            .finish()
            .map_err(|error| temporary.failed("write", &error))?;
        compressing += began.elapsed();
        let (file, file_hash, file_size) = packed.finish();
        file.into_inner()
            .map_err(|error| temporary.failed("write", error.error()))?;
        let counters = &cache.counters;
        count(
            &counters.nar_write_compression_ms,
            u64::try_from(compressing.as_millis()).unwrap_or(u64::MAX),
        );
        let method = cache.options.how.method;
        let url = format!(
            "nar/{}.nar{}",
            nix32_encode(&file_hash),
            method.file_ending()
        );
        let headers = Headers {
            content_type: "application/x-nix-nar",
            content_encoding: "",
        };
        let written = cache
            .objects
            .put(&url, Body::File(&temporary.0), headers, Existing::Keep)?;
        if written {
            count(&counters.nar_write, 1);
            count(&counters.nar_write_bytes, nar_size);
            count(&counters.nar_write_compressed_bytes, file_size);
        } else {
            count(&counters.nar_write_averted, 1);
        }
        let hash = hash_part(&info.path);
        if let Some((_, listing)) = listing {
            match listing.finish() {
                Some(text) => cache.put_small(
                    &format!("{hash}.ls"),
                    &text,
                    "application/json",
                    cache.options.ls,
                )?,
                None => log::warn!("{} has too many files for a listing", info.path),
            }
        }
        let narinfo = NarInfo {
            info: cache.signed(info),
            url,
            compression: method.name().to_owned(),
            file_hash: Some(file_hash),
            file_size: Some(file_size),
        };
        cache.put_small(
            &narinfo_key(hash),
            &narinfo.text(),
            "text/x-nix-narinfo",
            cache.options.narinfo,
        )?;
        count(&counters.nar_info_write, 1);
        Ok(cache.remember(info))
    }
}

impl BinaryCache {
    /// What is said of a path with our signatures; those of others stay.
    fn signed(&self, info: &ValidPathInfo) -> ValidPathInfo {
        let mut info = info.clone();
        info.sigs.retain(|signature| is_signature(signature));
        info.sigs.truncate(FOREIGN_SIGNATURES_MAX);
        let text = fingerprint(&info);
        info.sigs
            .extend(self.options.keys.iter().map(|key| key.sign(&text)));
        info
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let began = Instant::now();
        let n = self.out.write(bytes)?;
        self.compressing += began.elapsed();
        if let Some((parser, listing)) = &mut self.listing {
            parser
                .feed(&bytes[..n], listing)
                .map_err(crate::nix::Error::into_io)?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A temporary file, removed when it is not needed any more.
struct Temporary(PathBuf);

impl Temporary {
    fn failed(&self, doing: &'static str, error: &io::Error) -> ObjectError {
        temporary_failed(&self.0, doing, error)
    }
}

fn temporary_failed(path: &Path, doing: &'static str, error: &io::Error) -> ObjectError {
    ObjectError {
        doing,
        what: path.display().to_string(),
        why: plain_error(error),
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Usually moved away by the put.
        let _ = fs::remove_file(&self.0);
    }
}

/// Lets a number of threads in at once.
pub(super) struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    pub(super) fn new(count: usize) -> Gate {
        Gate {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    /// `None`: killed while waiting.
    pub(super) fn enter(&self, kill: &KillSwitch) -> Option<Permit<'_>> {
        let mut free = self.lock();
        while *free == 0 {
            if kill.is_thrown() {
                return None;
            }
            free = self
                .freed
                .wait_timeout(free, KILL_CHECK)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        *free -= 1;
        Some(Permit(self))
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        lock(&self.free)
    }
}

pub(super) struct Permit<'a>(&'a Gate);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.freed.notify_one();
    }
}
