//! The destination store, into which outputs go: the local store, or a binary cache that hydrad writes itself.
//!
//! Knows both and how paths come from one into the other; whoever asks does not. With a cache, the outputs of other
//! machines go into it without a stay in the local store, as with Hydra; the local store has the derivations and
//! sources, and what is built on this host.

use std::collections::HashSet;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::binary_cache::{
    self, BinaryCache, CacheError, Claim, OpenError, Options, Upload, UploadError,
};
use super::local::{ImportError, LocalStore, PathMeta};
use super::nix_copy::{Failure, NixCopy};
use super::objects::{Folder, Objects};
use super::presence::Lifetimes;
use super::s3::{self, Bucket};
use super::uri::StoreUri;
use crate::model::UnixSecs;
use crate::nix::nar;
use crate::nix::products::MemberScan;
use crate::nix::realisation::{OutputId, Realisation};
use crate::nix::ValidPathInfo;
use crate::sys::kill::KillSwitch;

/// Why something with the destination store does not work; never a build's or a machine's fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// A path that was there once is not any more: whatever made it has to be built again.
    Gone(String),
    /// The disk, the bucket, the daemon, in their words.
    Here(String),
    /// The run was ended meanwhile.
    Killed,
}

impl From<CacheError> for Trouble {
    fn from(error: CacheError) -> Trouble {
        match error {
            CacheError::Gone { .. } => Trouble::Gone(error.to_string()),
            CacheError::Killed => Trouble::Killed,
            CacheError::Objects(_) | CacheError::Damaged { .. } => Trouble::Here(error.to_string()),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        match failure {
            Failure::Killed => Trouble::Killed,
            Failure::Failed(message) => Trouble::Here(message),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Gone(message) | Trouble::Here(message) => f.write_str(message),
            Trouble::Killed => f.write_str("interrupted"),
        }
    }
}

/// Why an output could not be taken.
#[derive(Debug)]
pub enum TakeError {
    /// Where the bytes came from.
    Source(io::Error),
    /// The bytes are not those that were announced.
    Mismatch(String),
    Trouble(Trouble),
}

pub struct Destination {
    local: Arc<LocalStore>,
    place: Place,
    /// For copies that nobody ends before their time.
    never: KillSwitch,
}

enum Place {
    Local,
    /// Through the local store, with the `nix` command.
    Other(Box<NixCopy>),
    Cache(Box<BinaryCache>),
}

/// How a destination store is to be used.
#[derive(Clone, Debug)]
pub struct Manner {
    /// How long what is known of a binary cache is believed.
    pub lifetimes: Lifetimes,
    /// Paths written into it at the same time.
    pub uploads_max: usize,
    /// Folder for what is on its way to a bucket.
    pub staging: PathBuf,
    /// How long the `nix` command may take for one copy.
    pub copy_max: Duration,
    /// False for one who only looks.
    pub writes: bool,
}

impl Destination {
    /// The place that `store_uri` names; without one, the local store. A cache is made if it is not there.
    ///
    /// # Errors
    /// A message that says what to write instead, or what to mend.
    pub fn open(
        uri: Option<&str>,
        local: Arc<LocalStore>,
        manner: &Manner,
    ) -> Result<Destination, String> {
        let place = match uri {
            Some(uri) if !is_local(uri) && !is_cache(uri) => {
                let nowhere = local.dir().nowhere();
                let store = NixCopy::open(
                    uri,
                    manner.lifetimes,
                    manner.uploads_max,
                    manner.copy_max,
                    &nowhere,
                )
                .map_err(|why| format!("store_uri = {uri}: {why}"))?;
                Place::Other(Box::new(store))
            }
            Some(uri) if !is_local(uri) => {
                let cache = open_cache(uri, &local, manner)
                    .map_err(|why| format!("store_uri = {uri}: {why}"))?;
                Place::Cache(Box::new(cache))
            }
            _ => Place::Local,
        };
        let never =
            KillSwitch::new().map_err(|error| format!("cannot make a kill switch: {error}"))?;
        Ok(Destination {
            local,
            place,
            never,
        })
    }

    /// The binary cache, if that is what it is.
    pub fn cache(&self) -> Option<&BinaryCache> {
        match &self.place {
            Place::Local | Place::Other(_) => None,
            Place::Cache(cache) => Some(cache),
        }
    }

    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Local)
    }

    /// The place, for messages.
    pub fn describe(&self) -> String {
        match &self.place {
            Place::Local => "the local store".to_owned(),
            Place::Other(store) => format!("the store {} (through `nix copy`)", store.uri()),
            Place::Cache(cache) => {
                let names: Vec<&str> = cache.options().keys.iter().map(|key| key.name()).collect();
                let signed = match names.as_slice() {
                    [] => "not signed".to_owned(),
                    names => format!("signed as {}", names.join(", ")),
                };
                format!("the binary cache {} ({signed})", cache.describe())
            }
        }
    }

    /// Which of these paths are there.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn valid_paths<S: AsRef<str>>(&self, paths: &[S]) -> Result<HashSet<String>, String> {
        match &self.place {
            Place::Local => self.local.valid_paths(paths),
            Place::Other(store) => {
                let paths: Vec<&str> = paths.iter().map(AsRef::as_ref).collect();
                Ok(store.lookup_all(&paths)?.into_keys().collect())
            }
            Place::Cache(cache) => {
                let paths: Vec<&str> = paths.iter().map(AsRef::as_ref).collect();
                let found = cache
                    .lookup_all(&paths)
                    .map_err(|error| error.to_string())?;
                Ok(found.into_keys().collect())
            }
        }
    }

    /// The path of an output that is known only after the build; `None` if it was not built, or is not there any more.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn realisation(&self, id: &OutputId) -> Result<Option<String>, String> {
        match &self.place {
            Place::Local | Place::Other(_) => self.local.realisation(id),
            Place::Cache(cache) => cache.realisation(id).map_err(|error| error.to_string()),
        }
    }

    /// Says where such an output is, which is there.
    ///
    /// # Errors
    /// A message of the place.
    pub fn register_realisation(&self, realisation: Realisation) -> Result<(), String> {
        match &self.place {
            Place::Local | Place::Other(_) => self.local.register_realisation(&realisation),
            Place::Cache(cache) => cache
                .put_realisation(realisation)
                .map_err(|error| error.to_string()),
        }
    }

    /// The closure of the inputs of a step, references first. Sources, which nobody builds, are put there first if they
    /// are only in the local store.
    ///
    /// # Errors
    /// [`Trouble::Gone`] when an input is not there any more.
    pub fn closure_of_inputs(
        &self,
        inputs: &[String],
        sources: &[String],
        kill: &KillSwitch,
    ) -> Result<Vec<Arc<PathMeta>>, Trouble> {
        match &self.place {
            Place::Local => self.local.closure(inputs).map_err(|message| {
                // Whether one of them is gone finds out who asks which; a conversation can fail too.
                Trouble::Here(message)
            }),
            Place::Other(store) => {
                self.make_local(store, inputs, kill)?;
                self.local.closure(inputs).map_err(Trouble::Here)
            }
            Place::Cache(cache) => {
                self.copy_from_local(sources, kill)?;
                Ok(cache.closure(inputs)?)
            }
        }
    }

    /// Which of these inputs are not there, or not with all that they refer to. Such a one counts as missing from then
    /// on, so that it is built again.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn gone<'p>(&self, inputs: &'p [String]) -> Result<Vec<&'p str>, String> {
        let mut gone = Vec::new();
        match &self.place {
            Place::Other(store) => {
                for path in inputs {
                    store.forget(path);
                }
                let inputs_there: Vec<&str> = inputs.iter().map(String::as_str).collect();
                let there = store.lookup_all(&inputs_there)?;
                gone.extend(
                    inputs_there
                        .into_iter()
                        .filter(|path| !there.contains_key(*path)),
                );
            }
            Place::Local => {
                let valid = self.local.valid_paths(inputs)?;
                gone.extend(
                    inputs
                        .iter()
                        .map(String::as_str)
                        .filter(|path| !valid.contains(*path)),
                );
            }
            Place::Cache(cache) => {
                for path in inputs {
                    match cache.closure(&[path]) {
                        Ok(_) => {}
                        Err(CacheError::Gone { .. }) => {
                            cache.distrust(path);
                            gone.push(path.as_str());
                        }
                        Err(error) => return Err(error.to_string()),
                    }
                }
            }
        }
        Ok(gone)
    }

    /// Sum of the NAR sizes of a closure, bytes.
    ///
    /// # Errors
    /// As [`Destination::closure_of_inputs`].
    pub fn closure_size(&self, paths: &[&str]) -> Result<u64, Trouble> {
        match &self.place {
            Place::Local => self.local.closure_size(paths).map_err(Trouble::Here),
            Place::Other(store) => {
                self.make_local(store, paths, &self.never)?;
                self.local.closure_size(paths).map_err(Trouble::Here)
            }
            Place::Cache(cache) => Ok(cache.closure(paths)?.iter().map(|meta| meta.nar_size).sum()),
        }
    }

    /// Bytes of the NAR of a path that is there.
    ///
    /// # Errors
    /// When it is not there, or that cannot be found out.
    pub fn nar_size(&self, path: &str) -> Result<u64, Trouble> {
        match &self.place {
            Place::Local | Place::Other(_) => self
                .local
                .export_info(path)
                .map(|info| info.nar_size)
                .map_err(Trouble::Here),
            Place::Cache(cache) => match cache.lookup(path)? {
                Some(meta) => Ok(meta.nar_size),
                None => Err(Trouble::Gone(format!(
                    "{path} is not in the binary cache {} any more",
                    cache.describe()
                ))),
            },
        }
    }

    /// When a path came there; `None` if it is not there.
    ///
    /// # Errors
    /// A message when that cannot be found out.
    pub fn arrival(&self, path: &str) -> Result<Option<UnixSecs>, String> {
        match &self.place {
            Place::Local => self.local.registration_time(path),
            Place::Other(store) => match store.lookup_all(&[path])?.is_empty() {
                true => Ok(None),
                false => self.local.registration_time(path),
            },
            Place::Cache(cache) => {
                let found = cache.lookup(path).map_err(|error| error.to_string())?;
                match found {
                    None => Ok(None),
                    Some(_) => cache.modified(path).map_err(|error| error.to_string()),
                }
            }
        }
    }

    /// Gives a path to `taker` from wherever it is: the local store, which is nearer, else the cache.
    ///
    /// # Errors
    /// [`Trouble::Gone`] when it is nowhere; what goes wrong later the taker reads.
    pub fn read<T>(
        &self,
        path: &str,
        taker: impl FnOnce(&ValidPathInfo, &mut dyn Read) -> T,
    ) -> Result<T, Trouble> {
        if let Place::Other(store) = &self.place {
            self.make_local(store, &[path], &self.never)?;
        }
        let Place::Cache(cache) = &self.place else {
            let info = self.local.export_info(path).map_err(Trouble::Here)?;
            return self
                .local
                .read_nar(path, |nar| taker(&info, nar))
                .map_err(Trouble::Here);
        };
        if self.is_here(path)? {
            let info = self.local.export_info(path).map_err(Trouble::Here)?;
            return self
                .local
                .read_nar(path, |nar| taker(&info, nar))
                .map_err(Trouble::Here);
        }
        Ok(cache.read_nar(path, taker)?)
    }

    /// Whether what is received still has to be copied on, with [`Destination::copy_from_local`].
    pub fn is_beyond_local(&self) -> bool {
        matches!(self.place, Place::Other(_))
    }

    /// Makes paths of another store, and all they refer to, valid in the local store.
    fn make_local<S: AsRef<str>>(
        &self,
        store: &NixCopy,
        paths: &[S],
        kill: &KillSwitch,
    ) -> Result<(), Trouble> {
        let here = self.local.valid_paths(paths).map_err(Trouble::Here)?;
        let missing: Vec<&str> = paths
            .iter()
            .map(AsRef::as_ref)
            .filter(|path| !here.contains(*path))
            .collect();
        let there = store.lookup_all(&missing).map_err(Trouble::Here)?;
        if let Some(path) = missing.iter().find(|path| !there.contains_key(**path)) {
            return Err(Trouble::Gone(format!(
                "{path} is neither in the local store nor in {} any more",
                store.uri()
            )));
        }
        Ok(store.fetch(&missing, kill)?)
    }

    fn is_here(&self, path: &str) -> Result<bool, Trouble> {
        let valid = self.local.valid_paths(&[path]).map_err(Trouble::Here)?;
        Ok(!valid.is_empty())
    }

    /// Looks for products in valid paths, the outputs of one derivation. Answers in the same order.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn scan(&self, paths: &[&str]) -> Result<Vec<MemberScan>, Trouble> {
        if let Place::Cache(cache) = &self.place {
            let here = self.local.valid_paths(paths).map_err(Trouble::Here)?;
            if !paths.iter().all(|path| here.contains(*path)) {
                return paths.iter().map(|path| scan_nar(cache, path)).collect();
            }
        }
        if let Place::Other(store) = &self.place {
            self.make_local(store, paths, &self.never)?;
        }
        self.local.scan(paths).map_err(Trouble::Here)
    }

    /// Prepares to take an output from a machine; `None` if it is there already.
    ///
    /// # Errors
    /// [`Trouble::Gone`] when something it refers to is not there.
    pub fn landing(
        &self,
        info: &ValidPathInfo,
        kill: &KillSwitch,
    ) -> Result<Option<Landing<'_>>, Trouble> {
        let cache = match &self.place {
            Place::Local => return Ok(Some(Landing::Local(&self.local))),
            Place::Other(store) => {
                let references: Vec<&str> = info
                    .references
                    .iter()
                    .map(String::as_str)
                    .filter(|reference| *reference != info.path)
                    .collect();
                self.make_local(store, &references, kill)?;
                return Ok(Some(Landing::Local(&self.local)));
            }
            Place::Cache(cache) => cache,
        };
        self.bring_references(cache, info, kill)?;
        let claim = cache.claim(&info.path, kill)?;
        if cache.lookup(&info.path)?.is_some() {
            return Ok(None);
        }
        Ok(Some(Landing::Cache(Box::new(cache.begin(kill)?), claim)))
    }

    /// A path is never visible before what it refers to is.
    fn bring_references(
        &self,
        cache: &BinaryCache,
        info: &ValidPathInfo,
        kill: &KillSwitch,
    ) -> Result<(), Trouble> {
        for reference in info.references.iter().filter(|path| **path != info.path) {
            if cache.lookup(reference)?.is_some() {
                continue;
            }
            if !self.is_here(reference)? {
                return Err(Trouble::Gone(format!(
                    "{} refers to {reference}, which is not in {}",
                    info.path,
                    cache.describe()
                )));
            }
            self.copy_from_local(&[reference], kill)?;
        }
        Ok(())
    }

    /// Puts paths of the local store and all they refer to there; nothing to do for the local store.
    ///
    /// # Errors
    /// Also when they are not valid in the local store.
    pub fn copy_from_local<S: AsRef<str>>(
        &self,
        paths: &[S],
        kill: &KillSwitch,
    ) -> Result<(), Trouble> {
        if let Place::Other(store) = &self.place {
            let paths: Vec<&str> = paths.iter().map(AsRef::as_ref).collect();
            return Ok(store.send(&paths, kill)?);
        }
        let Place::Cache(cache) = &self.place else {
            return Ok(());
        };
        let closure = self.local.closure(paths).map_err(Trouble::Here)?;
        let asked: Vec<&str> = closure.iter().map(|meta| &*meta.path).collect();
        let found = cache.lookup_all(&asked)?;
        for path in asked.into_iter().filter(|path| !found.contains_key(*path)) {
            let _claim = cache.claim(path, kill)?;
            // Another step may have needed it too.
            if cache.lookup(path)?.is_some() {
                continue;
            }
            self.upload(cache, path, kill)?;
        }
        Ok(())
    }

    fn upload(&self, cache: &BinaryCache, path: &str, kill: &KillSwitch) -> Result<(), Trouble> {
        let info = self.local.export_info(path).map_err(Trouble::Here)?;
        let mut upload = cache.begin(kill)?;
        nar::dump_path(Path::new(path), &mut upload).map_err(|error| {
            Trouble::Here(format!(
                "cannot copy {path} from the local store to {}: {error}",
                cache.describe()
            ))
        })?;
        match upload.finish(&info) {
            Ok(_) => Ok(()),
            Err(UploadError::Cache(error)) => Err(error.into()),
            Err(UploadError::Mismatch(message)) => Err(Trouble::Here(format!(
                "{message}: it is damaged in the local store; `nix-store --verify-path {path}` shows it"
            ))),
            Err(UploadError::Source(error)) => Err(Trouble::Here(error.to_string())),
        }
    }

    /// Makes paths of a closure (references first) valid in the local store, for a build on this host.
    ///
    /// # Errors
    /// When one of them cannot be read or registered.
    pub fn bring_home(&self, closure: &[Arc<PathMeta>], kill: &KillSwitch) -> Result<(), Trouble> {
        let Place::Cache(cache) = &self.place else {
            return Ok(());
        };
        let paths: Vec<&str> = closure.iter().map(|meta| &*meta.path).collect();
        let here = self.local.valid_paths(&paths).map_err(Trouble::Here)?;
        for path in paths.into_iter().filter(|path| !here.contains(*path)) {
            if kill.is_thrown() {
                return Err(Trouble::Killed);
            }
            let imported = cache.read_nar(path, |info, nar| self.local.import(info, nar))?;
            imported.map_err(|error| {
                let why = match error {
                    ImportError::Source(error) => error.to_string(),
                    ImportError::Store(message) => message,
                };
                Trouble::Here(format!(
                    "cannot copy {path} from {} to the local store: {why}",
                    cache.describe()
                ))
            })?;
        }
        Ok(())
    }

    /// Remembers what a machine said of an output that is now there.
    pub fn learn(&self, path: &str, references: &[String], nar_size: u64) {
        if self.is_local() {
            self.local.learn(path, references, nar_size);
        }
    }
}

/// Where the bytes of one output go.
pub enum Landing<'a> {
    Local(&'a LocalStore),
    Cache(Box<Upload<'a>>, Claim<'a>),
}

impl Landing<'_> {
    /// Takes the NAR of the output; it is there when this has succeeded.
    ///
    /// # Errors
    /// [`TakeError`] tells whose fault it is.
    pub fn take(self, info: &ValidPathInfo, nar: &mut dyn Read) -> Result<(), TakeError> {
        match self {
            Landing::Local(store) => store.import(info, nar).map_err(|error| match error {
                ImportError::Source(error) => TakeError::Source(error),
                ImportError::Store(message) => TakeError::Trouble(Trouble::Here(message)),
            }),
            Landing::Cache(mut upload, _claim) => upload
                .fill(nar)
                .and_then(|()| upload.finish(info))
                .map(|_| ())
                .map_err(|error| match error {
                    UploadError::Source(error) => TakeError::Source(error),
                    UploadError::Mismatch(message) => TakeError::Mismatch(message),
                    UploadError::Cache(error) => TakeError::Trouble(error.into()),
                }),
        }
    }
}

fn scan_nar(cache: &BinaryCache, path: &str) -> Result<MemberScan, Trouble> {
    let mut scan = MemberScan::new();
    let parsed = cache.read_nar(path, |info, nar| {
        let digest = nar::parse(BufReader::new(nar), &mut scan)?;
        Ok::<_, crate::nix::Error>(digest.sha256 == info.nar_hash)
    })?;
    let damaged = |why: String| {
        Trouble::Here(format!(
            "{path} in {} cannot be read: {why}",
            cache.describe()
        ))
    };
    match parsed {
        Ok(true) => Ok(scan),
        Ok(false) => Err(damaged("its NAR has another hash".to_owned())),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn is_local(uri: &str) -> bool {
    matches!(uri, "" | "auto" | "local" | "daemon")
}

/// Whether hydrad writes there itself.
fn is_cache(uri: &str) -> bool {
    ["file://", "s3://"]
        .iter()
        .any(|scheme| uri.starts_with(scheme))
}

fn open_cache(uri: &str, local: &LocalStore, manner: &Manner) -> Result<BinaryCache, String> {
    let text = |error: OpenError| error.to_string();
    let mut uri = StoreUri::parse(uri).map_err(|error| error.to_string())?;
    let options = Options::take(&mut uri.params).map_err(text)?;
    let (objects, known): (Box<dyn Objects>, &[&str]) = match &*uri.scheme {
        "file" => {
            if !uri.place.starts_with('/') {
                return Err(
                    "a folder needs an absolute path; write file:///var/cache/hydra".into(),
                );
            }
            if options.is_encoded() {
                return Err(
                    "ls-compression, log-compression and narinfo-compression need a bucket, \
                     since a folder cannot tell HTTP clients; leave them out"
                        .into(),
                );
            }
            let place = Path::new(&uri.place);
            let folder = match manner.writes {
                true => Folder::create(place).map_err(|error| {
                    format!("{error}; hydrad's user must be able to write there")
                })?,
                false => Folder::at(place),
            };
            (Box::new(folder), &[])
        }
        "s3" => {
            let env = |name: &str| std::env::var(name).ok();
            let staging = match manner.writes {
                true => Folder::create(&manner.staging).map_err(|error| error.to_string())?,
                false => Folder::at(&manner.staging),
            };
            let bucket =
                Bucket::open(&mut uri, &env, staging).map_err(|error| error.to_string())?;
            log::info!("the bucket {}", bucket.describe_access());
            (Box::new(bucket), s3::PARAMS)
        }
        scheme => return Err(format!("hydrad does not write {scheme}:// itself")),
    };
    let known: Vec<&str> = binary_cache::PARAMS.iter().chain(known).copied().collect();
    uri.params
        .finish(&known)
        .map_err(|error| error.to_string())?;
    BinaryCache::open(
        objects,
        local.dir().clone(),
        options,
        manner.lifetimes,
        manner.uploads_max,
        manner.writes,
    )
    .map_err(text)
}
