//! Objects in an S3 bucket, at AWS or at anything that speaks the same protocol.
//!
//! Knows requests, their signatures, retries and multipart uploads; does not know what an object means.
//!
//! * **Address.** AWS is spoken to as `BUCKET.s3.REGION.amazonaws.com`; a named endpoint, and a bucket whose name no
//!   certificate fits, with the bucket as the first part of the path.
//! * **Retries.** What passes by itself (connections, deadlines, 5xx, 429, `SlowDown`) is tried again with growing
//!   delays, under the bounds in [`Limits`]. What does not (403, 404, a certificate) is an error at once, with what to try.
//! * **Deadlines.** None on the whole of a transfer, since nobody knows how long a large one takes, but on every single
//!   read and write: it fails when no byte has moved for `quiet`.
//! * **Uploads.** Every byte is signed, so what S3 has stored is what we meant. An upload in parts that fails is aborted.
//!   A process that is killed leaves its parts behind, unseen but paid for: the bucket's life-cycle rule should remove them.
//! * **Downloads** that break off go on where they stopped, if the object is still the same.

mod credentials;
mod instance;
mod sign;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use ureq::http::{self, Response};
use ureq::tls::{parse_pem, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, SendBody};

use self::credentials::{Credentials, Files, Source};
use super::objects::{
    is_key, Body, Existing, Folder, Headers, ObjectError, Objects, Requests, Stat,
};
use super::uri::{StoreUri, UriError};
use crate::base::lock::lock;
use crate::base::random::Random;
use crate::base::text::{clip, plain};
use crate::model::dates;
use crate::nix::hash::{hex_encode, sha256, Sha256Hash};
use crate::sys::child::plain_error;
use crate::sys::clock::unix_now;

/// The parameters of `s3://` that are understood here; others belong to the binary cache.
pub const PARAMS: &[&str] = &[
    "region",
    "endpoint",
    "scheme",
    "profile",
    "addressing-style",
    "storage-class",
    "multipart-upload",
    "multipart-threshold",
    "multipart-chunk-size",
    "buffer-size",
];

const REGION_DEFAULT: &str = "us-east-1";
/// Larger objects are uploaded in parts, bytes.
const MULTIPART_THRESHOLD_DEFAULT: u64 = 64 << 20;
const PART_BYTES_DEFAULT: u64 = 16 << 20;
/// S3's own bounds.
const PART_BYTES_MIN: u64 = 5 << 20;
const PARTS_MAX: u64 = 10_000;
/// Parts of one object that are sent at the same time.
const PARTS_AT_ONCE: usize = 4;
/// Requests answer slowly and cost the server little.
const QUESTIONS_AT_ONCE: usize = 16;
/// Of an answer that is not an object this much is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Of what a server says this much is shown.
const WORDS_BYTES_MAX: usize = 400;
/// A download that breaks off goes on this many times.
const RESUMES_MAX: u32 = 8;
/// Credentials that end sooner than this are renewed before use, seconds.
const RENEWAL_SECS: i64 = 300;
const HASH_BUFFER_BYTES: usize = 1 << 17;
const IDLE_CONNECTIONS_MAX: usize = 32;

/// The bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To find the host and to connect.
    pub connect: Duration,
    /// How long no byte may move.
    pub quiet: Duration,
    pub tries_max: u32,
    /// Before the second try; twice as long before each further one, and by chance up to half of it shorter.
    pub delay_first: Duration,
    pub delay_max: Duration,
    /// No try begins later than this after the first.
    pub total_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(15),
            quiet: Duration::from_secs(60),
            tries_max: 8,
            delay_first: Duration::from_millis(250),
            delay_max: Duration::from_secs(20),
            total_max: Duration::from_secs(300),
        }
    }
}

/// Why a bucket cannot be used as it is configured.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum S3Error {
    /// A parameter of the URI.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A bucket's name that is none.
    #[error("'{0}' is not the name of a bucket; write s3://BUCKET?region=REGION")]
    Name(String),
    /// Credentials, a file of certificates, the environment.
    #[error("{0}")]
    Setup(String),
}

/// A bucket.
pub struct Bucket(Arc<Inner>);

struct Inner {
    agent: Agent,
    name: String,
    /// `https://host:port`, without a path.
    endpoint: String,
    /// The `host` header.
    host: String,
    /// In front of the key in a path, encoded: `/`, or `/BUCKET/`.
    root: String,
    region: String,
    storage_class: Option<String>,
    /// Larger objects go in parts; `None`: none do.
    multipart_threshold: Option<u64>,
    part_bytes: u64,
    source: Source,
    credentials: Mutex<Option<Credentials>>,
    limits: Limits,
    jitter: Mutex<Random>,
    /// Only its temporary files are used.
    staging: Folder,
    requests: Requests,
    denied_said: AtomicBool,
}

/// One request, before it is signed.
struct Call<'a> {
    method: &'static str,
    key: &'a str,
    query: &'a [(&'a str, &'a str)],
    /// Names in lower case. Those of Amazon's (`x-amz-`) are signed.
    headers: Vec<(&'static str, String)>,
    payload: Payload<'a>,
}

#[derive(Clone, Copy)]
enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Slice {
        path: &'a Path,
        from: u64,
        bytes: u64,
    },
}

/// Why a request came to nothing.
#[derive(Debug)]
struct Fault {
    kind: FaultKind,
    tries: u32,
}

#[derive(Debug)]
enum FaultKind {
    /// The server's answer; `region` is where it says that the bucket is.
    Answer {
        status: u16,
        code: String,
        words: String,
        region: Option<String>,
    },
    /// The way to the server. `passing` if another try may help.
    Network { words: String, passing: bool },
    /// A file of ours.
    Local(String),
    /// No credentials to sign with.
    Credentials(String),
}

impl Bucket {
    /// Takes what it understands from the URI's parameters. Speaks to nobody yet. Of the folder only the temporary files
    /// are used.
    ///
    /// # Errors
    /// For parameters, credentials and certificates that cannot be used.
    pub fn open(
        uri: &mut StoreUri,
        env: &dyn Fn(&str) -> Option<String>,
        staging: Folder,
    ) -> Result<Bucket, S3Error> {
        Bucket::with_limits(uri, env, staging, Limits::default())
    }

    /// As [`Bucket::open`], with bounds of its own.
    ///
    /// # Errors
    /// The same.
    pub fn with_limits(
        uri: &mut StoreUri,
        env: &dyn Fn(&str) -> Option<String>,
        staging: Folder,
        limits: Limits,
    ) -> Result<Bucket, S3Error> {
        let name = uri.place.trim_end_matches('/').to_owned();
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || !name.chars().all(known) {
            return Err(S3Error::Name(uri.place.clone()));
        }
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let params = &mut uri.params;
        let profile = params.take("profile").filter(|name| !name.is_empty());
        let source = Source::choose(env, profile.as_deref()).map_err(S3Error::Setup)?;
        let region = match params.take("region").filter(|region| !region.is_empty()) {
            Some(region) => region,
            None => match set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")) {
                Some(region) => region,
                None => region_of_profile(env, &source, profile.as_deref())?,
            },
        };
        let scheme = params.take_as("scheme", "write http or https", |scheme| match scheme {
            "http" => Some("http"),
            "https" => Some("https"),
            _ => None,
        })?;
        let endpoint = params
            .take("endpoint")
            .or_else(|| set("AWS_ENDPOINT_URL_S3"))
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .filter(|endpoint| !endpoint.is_empty());
        let virtual_host = params.take_as(
            "addressing-style",
            "write auto, path or virtual",
            |style| match style {
                "auto" => Some(None),
                "path" => Some(Some(false)),
                "virtual" => Some(Some(true)),
                _ => None,
            },
        )?;
        let (scheme, authority) = match &endpoint {
            Some(endpoint) => split_endpoint(endpoint, scheme)?,
            None => {
                let top = if region.starts_with("cn-") {
                    "amazonaws.com.cn"
                } else {
                    "amazonaws.com"
                };
                (scheme.unwrap_or("https"), format!("s3.{region}.{top}"))
            }
        };
        // AWS's certificates are for one label in front of their name.
        let fits = !(scheme == "https" && name.contains('.'));
        let (host, root) = match virtual_host.flatten().unwrap_or(endpoint.is_none() && fits) {
            true => (format!("{name}.{authority}"), "/".to_owned()),
            false => (authority, format!("/{name}/")),
        };
        let in_parts = params.take_bool("multipart-upload")?.unwrap_or(true);
        let threshold = params.take_number::<u64>("multipart-threshold")?;
        let part_bytes = params.take_number::<u64>("multipart-chunk-size")?;
        let buffer = params.take_number::<u64>("buffer-size")?;
        let storage_class = params
            .take("storage-class")
            .filter(|class| !class.is_empty());

        Ok(Bucket(Arc::new(Inner {
            agent: agent(env, limits).map_err(S3Error::Setup)?,
            endpoint: format!("{scheme}://{host}"),
            host,
            root,
            name,
            region,
            storage_class,
            multipart_threshold: in_parts.then_some(
                threshold
                    .unwrap_or(MULTIPART_THRESHOLD_DEFAULT)
                    .max(PART_BYTES_MIN),
            ),
            part_bytes: part_bytes
                .or(buffer)
                .unwrap_or(PART_BYTES_DEFAULT)
                .max(PART_BYTES_MIN),
            source,
            credentials: Mutex::new(None),
            limits,
            jitter: Mutex::new(Random::new(
                unix_now().unsigned_abs() ^ u64::from(std::process::id()) << 32,
            )),
            staging,
            requests: Requests::default(),
            denied_said: AtomicBool::new(false),
        })))
    }

    /// Where requests go and who signs them, for the log.
    pub fn describe_access(&self) -> String {
        format!(
            "{} at {}, region {}, with {}",
            self.describe(),
            self.0.endpoint,
            self.0.region,
            self.0.source
        )
    }
}

impl Objects for Bucket {
    fn open(&self, key: &str) -> Result<Option<Box<dyn Read + Send>>, ObjectError> {
        let began = Instant::now();
        self.0.check_key("read", key)?;
        match self.0.send(&Call::new("GET", key)) {
            Ok(response) => Ok(Some(Box::new(Download::new(
                self.0.clone(),
                key,
                response,
                began,
            )))),
            Err(fault) => {
                self.0.requests.get(0, began);
                self.0.absent_or("read", key, fault).map(|()| None)
            }
        }
    }

    fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError> {
        self.0.check_key("look for", key)?;
        self.0.requests.head();
        let stat = |size, response: &Response<ureq::Body>| Stat {
            size,
            modified: header(response, "last-modified").and_then(|time| dates::from_http(&time)),
        };
        let fault = match self.0.send(&Call::new("HEAD", key)) {
            Ok(response) => return Ok(Some(stat(length(&response).unwrap_or(0), &response))),
            Err(fault) => fault,
        };
        // An answer to HEAD has no words. 403 is a missing object to somebody who may not list, or
        // a real refusal; GET tells.
        let fault = match fault.kind {
            FaultKind::Answer { status: 403, .. } => {
                let began = Instant::now();
                let mut call = Call::new("GET", key);
                call.headers.push(("range", "bytes=0-0".to_owned()));
                let asked = self.0.send(&call);
                self.0.requests.get(0, began);
                match asked {
                    Ok(response) => {
                        let size = total_of_range(&response).unwrap_or(0);
                        return Ok(Some(stat(size, &response)));
                    }
                    Err(fault) => fault,
                }
            }
            _ => fault,
        };
        self.0.absent_or("look for", key, fault).map(|()| None)
    }

    fn put(
        &self,
        key: &str,
        body: Body<'_>,
        headers: Headers<'_>,
        existing: Existing,
    ) -> Result<bool, ObjectError> {
        self.0.check_key("write", key)?;
        if existing == Existing::Keep && self.stat(key)?.is_some() {
            return Ok(false);
        }
        let mut described = Vec::new();
        for (name, value) in [
            ("content-type", headers.content_type),
            ("content-encoding", headers.content_encoding),
        ] {
            if !value.is_empty() {
                described.push((name, value.to_owned()));
            }
        }
        if let Some(class) = &self.0.storage_class {
            described.push(("x-amz-storage-class", class.clone()));
        }
        let put = match body {
            Body::Bytes(bytes) => self.0.put_whole(key, described, Payload::Bytes(bytes)),
            Body::File(path) => match fs::metadata(path) {
                Err(error) => Err(Fault::local(path, &error)),
                Ok(file) => match self.0.multipart_threshold {
                    Some(threshold) if file.len() > threshold => {
                        self.0.put_in_parts(key, described, path, file.len())
                    }
                    _ => {
                        let slice = Payload::Slice {
                            path,
                            from: 0,
                            bytes: file.len(),
                        };
                        self.0.put_whole(key, described, slice)
                    }
                },
            },
        };
        put.map(|()| true)
            .map_err(|fault| self.0.explain("write", key, fault))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.0.check_key("remove", key)?;
        match self.0.send(&Call::new("DELETE", key)) {
            Ok(_) => Ok(()),
            Err(fault) => match &fault.kind {
                FaultKind::Answer { code, .. } if code == "NoSuchKey" => Ok(()),
                _ => Err(self.0.explain("remove", key, fault)),
            },
        }
    }

    fn staging(&self) -> Result<(File, PathBuf), ObjectError> {
        self.0.staging.staging()
    }

    fn describe(&self) -> String {
        format!("s3://{}", self.0.name)
    }

    fn requests(&self) -> &Requests {
        &self.0.requests
    }

    fn parallel_max(&self) -> usize {
        QUESTIONS_AT_ONCE
    }
}

impl<'a> Call<'a> {
    fn new(method: &'static str, key: &'a str) -> Call<'a> {
        Call {
            method,
            key,
            query: &[],
            headers: Vec::new(),
            payload: Payload::Nothing,
        }
    }
}

impl Inner {
    fn put_whole(
        &self,
        key: &str,
        headers: Vec<(&'static str, String)>,
        payload: Payload<'_>,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let call = Call {
            headers,
            payload,
            ..Call::new("PUT", key)
        };
        self.send(&call)?;
        self.requests.put(payload.bytes(), began);
        Ok(())
    }

    fn put_in_parts(
        &self,
        key: &str,
        headers: Vec<(&'static str, String)>,
        path: &Path,
        bytes: u64,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let call = Call {
            headers,
            query: &[("uploads", "")],
            ..Call::new("POST", key)
        };
        let (answer, tries) = self.ask(&call)?;
        self.requests.put(0, began);
        let upload = element(&answer, "UploadId").ok_or_else(|| not_understood(&answer, tries))?;
        let sent = self
            .send_parts(key, &upload, path, bytes)
            .and_then(|tags| self.complete(key, &upload, &tags, bytes));
        if sent.is_err() {
            let query = [("uploadId", &*upload)];
            let abort = Call {
                query: &query,
                ..Call::new("DELETE", key)
            };
            if let Err(fault) = self.send(&abort) {
                log::warn!(
                    "an upload in parts of s3://{}/{key} failed and cannot be aborted ({}); its parts stay in the bucket \
                     until a life-cycle rule removes them",
                    self.name,
                    self.explain("abort the upload of", key, fault).why
                );
            }
        }
        sent
    }

    /// Sends the parts, a few at a time; their tags in order.
    fn send_parts(
        &self,
        key: &str,
        upload: &str,
        path: &Path,
        bytes: u64,
    ) -> Result<Vec<String>, Fault> {
        let part_bytes = self.part_bytes.max(bytes.div_ceil(PARTS_MAX));
        let count =
            usize::try_from(bytes.div_ceil(part_bytes)).expect("BUG: more parts than memory");
        let tags: Vec<Mutex<Option<Result<String, Fault>>>> =
            (0..count).map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = tags.get(at) else {
                    return;
                };
                let from = at as u64 * part_bytes;
                let slice = Payload::Slice {
                    path,
                    from,
                    bytes: part_bytes.min(bytes - from),
                };
                let sent = self.send_part(key, upload, at + 1, slice);
                failed.fetch_or(sent.is_err(), Ordering::Relaxed);
                *lock(slot) = Some(sent);
            }
        };
        std::thread::scope(|scope| {
            for n in 1..PARTS_AT_ONCE.min(count) {
                let thread = std::thread::Builder::new().name(format!("upload-{n}"));
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    log::warn!(
                        "cannot start a thread to upload with, going on with fewer: {error}"
                    );
                    break;
                }
            }
            work();
        });
        let sent = tags
            .into_iter()
            .filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
        // After a failure the slots behind it may be empty, but then there is an error among the others.
        sent.collect()
    }

    fn send_part(
        &self,
        key: &str,
        upload: &str,
        number: usize,
        slice: Payload<'_>,
    ) -> Result<String, Fault> {
        let began = Instant::now();
        let number = number.to_string();
        let query = [("partNumber", &*number), ("uploadId", upload)];
        let call = Call {
            query: &query,
            payload: slice,
            ..Call::new("PUT", key)
        };
        let response = self.send(&call)?;
        self.requests.put(slice.bytes(), began);
        header(&response, "etag").ok_or_else(|| not_understood("no ETag", 1))
    }

    fn complete(&self, key: &str, upload: &str, tags: &[String], bytes: u64) -> Result<(), Fault> {
        let began = Instant::now();
        let mut xml = String::from(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
        );
        for (n, tag) in tags.iter().enumerate() {
            let tag = tag
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            xml.push_str(&format!(
                "<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag></Part>",
                n + 1
            ));
        }
        xml.push_str("</CompleteMultipartUpload>");
        let query = [("uploadId", upload)];
        let call = Call {
            query: &query,
            headers: vec![("content-type", "application/xml".to_owned())],
            payload: Payload::Bytes(xml.as_bytes()),
            ..Call::new("POST", key)
        };
        match self.ask(&call) {
            Ok(_) => {}
            // The answer to an earlier try was lost, and that one did it.
            Err(Fault {
                kind: FaultKind::Answer { code, .. },
                tries,
            }) if code == "NoSuchUpload" && tries > 1 => {
                let found = self.send(&Call::new("HEAD", key))?;
                if length(&found) != Some(bytes) {
                    return Err(Fault {
                        kind: FaultKind::Answer {
                            status: 404,
                            code,
                            words: "the upload is gone and the object is not there".to_owned(),
                            region: None,
                        },
                        tries,
                    });
                }
            }
            Err(fault) => return Err(fault),
        }
        self.requests.put(0, began);
        Ok(())
    }

    /// Sends a request whose answer is a text, which may be an error although the status is 200.
    fn ask(&self, call: &Call<'_>) -> Result<(String, u32), Fault> {
        let (mut response, tries) = self.send_until(call, true)?;
        let mut bytes = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut bytes);
        match read {
            Ok(_) => Ok((String::from_utf8_lossy(&bytes).into_owned(), tries)),
            Err(error) => Err(Fault {
                kind: network_error(&ureq::Error::Io(error), self.limits),
                tries,
            }),
        }
    }

    /// Sends a request until it succeeds (2xx) or there is no point in it any more.
    fn send(&self, call: &Call<'_>) -> Result<Response<ureq::Body>, Fault> {
        self.send_until(call, false).map(|(response, _)| response)
    }

    fn send_until(
        &self,
        call: &Call<'_>,
        text_tells: bool,
    ) -> Result<(Response<ureq::Body>, u32), Fault> {
        let began = Instant::now();
        let mut renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let kind = match self.attempt(call, text_tells) {
                Ok(response) => return Ok((response, tries)),
                Err(kind) => kind,
            };
            if kind.is_expiry() && !renewed {
                renewed = true;
                *self.lock_credentials() = None;
                continue;
            }
            let delay = self.delay(tries);
            if !kind.is_passing()
                || tries >= self.limits.tries_max
                || began.elapsed() + delay > self.limits.total_max
            {
                return Err(Fault { kind, tries });
            }
            log::debug!(
                "{} s3://{}/{}: {kind:?}; again in {delay:?}",
                call.method,
                self.name,
                call.key
            );
            std::thread::sleep(delay);
        }
    }

    fn delay(&self, tries: u32) -> Duration {
        let longest = self
            .limits
            .delay_first
            .saturating_mul(1 << (tries - 1).min(16))
            .min(self.limits.delay_max);
        let half = u64::try_from(longest.as_millis() / 2).unwrap_or(u64::MAX);
        let mut jitter = lock(&self.jitter);
        Duration::from_millis(half + jitter.below(half + 1))
    }

    fn attempt(
        &self,
        call: &Call<'_>,
        text_tells: bool,
    ) -> Result<Response<ureq::Body>, FaultKind> {
        let credentials = self.credentials()?;
        let payload = call.payload.hash().map_err(FaultKind::Local)?;
        let path = format!("{}{}", self.root, sign::encode_path(call.key));
        let query = sign::encode_query(call.query);
        let timestamp = dates::timestamp(unix_now());
        let mut signed = vec![
            ("host", self.host.clone()),
            ("x-amz-content-sha256", hex_encode(&payload)),
            ("x-amz-date", timestamp.clone()),
        ];
        if let Some(token) = &credentials.session_token {
            signed.push(("x-amz-security-token", token.clone()));
        }
        let (amazon, others): (Vec<_>, Vec<_>) = call
            .headers
            .iter()
            .cloned()
            .partition(|(name, _)| name.starts_with("x-amz-"));
        signed.extend(amazon);
        let authorization = sign::authorization(
            &sign::Request {
                method: call.method,
                path: &path,
                query: &query,
                headers: &signed,
                payload,
            },
            &credentials,
            &self.region,
            &timestamp,
        );

        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = http::Request::builder()
            .method(call.method)
            .uri(format!("{}{path}{mark}{query}", self.endpoint))
            .header("authorization", authorization);
        for (name, value) in signed.iter().chain(&others) {
            request = request.header(*name, value);
        }
        let mut reader = call.payload.reader().map_err(FaultKind::Local)?;
        let cannot =
            |error: http::Error| FaultKind::Local(format!("cannot make a request: {error}"));
        let answer = match call.payload {
            Payload::Nothing if call.method != "POST" => {
                self.agent.run(request.body(()).map_err(cannot)?)
            }
            _ => {
                let request = request.header("content-length", call.payload.bytes());
                let body = SendBody::from_reader(&mut reader);
                self.agent.run(request.body(body).map_err(cannot)?)
            }
        };
        if let Some(error) = reader.failed {
            return Err(FaultKind::Local(error));
        }
        let mut response = answer.map_err(|error| network_error(&error, self.limits))?;
        let status = response.status().as_u16();
        if response.status().is_success() && !text_tells {
            return Ok(response);
        }
        let region = header(&response, "x-amz-bucket-region");
        let mut bytes = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let is_error = element(&text, "Error").is_some();
        if response.status().is_success() && !is_error {
            if let Err(error) = read {
                return Err(network_error(&ureq::Error::Io(error), self.limits));
            }
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(
                parts,
                ureq::Body::builder().data(bytes),
            ));
        }
        // Whatever else stands there, for instance the page of a proxy, is shown as it is.
        let words = match element(&text, "Message") {
            Some(message) if is_error => message,
            _ => text.trim().to_owned(),
        };
        Err(FaultKind::Answer {
            status,
            code: element(&text, "Code")
                .filter(|_| is_error)
                .unwrap_or_default(),
            words: clip(&plain(&words), WORDS_BYTES_MAX),
            region: region.or_else(|| element(&text, "Region").filter(|_| is_error)),
        })
    }

    fn lock_credentials(&self) -> std::sync::MutexGuard<'_, Option<Credentials>> {
        lock(&self.credentials)
    }

    /// The credentials in use, read or fetched anew if they have ended or will soon. Holding the lock meanwhile is meant:
    /// the others need the same answer.
    fn credentials(&self) -> Result<Credentials, FaultKind> {
        let mut kept = self.lock_credentials();
        if let Some(credentials) = &*kept {
            if credentials
                .expires
                .is_none_or(|at| unix_now() + RENEWAL_SECS < at)
            {
                return Ok(credentials.clone());
            }
        }
        let credentials = match &self.source {
            Source::Environment(credentials) => Ok(credentials.clone()),
            Source::Profile { name, files } => files
                .credentials(name)
                .and_then(|found| found.ok_or_else(|| format!("the profile '{name}' is gone"))),
            Source::Instance => instance::credentials(),
        }
        .map_err(FaultKind::Credentials)?;
        *kept = Some(credentials.clone());
        Ok(credentials)
    }

    fn check_key(&self, doing: &'static str, key: &str) -> Result<(), ObjectError> {
        if is_key(key) {
            return Ok(());
        }
        Err(ObjectError {
            doing,
            what: format!("'{key}' in s3://{}", self.name),
            why: "this is no name of an object".to_owned(),
        })
    }

    /// Nothing if the object is not there; else what is wrong. To somebody who may not list the bucket S3 says
    /// `AccessDenied` of an object that is not there; as Nix does, we take it for that and say so once.
    fn absent_or(&self, doing: &'static str, key: &str, fault: Fault) -> Result<(), ObjectError> {
        match &fault.kind {
            // To HEAD there are no words; that the bucket is there is found out by the next GET or PUT.
            FaultKind::Answer {
                status: 404, code, ..
            } if code.is_empty() || code == "NoSuchKey" => Ok(()),
            FaultKind::Answer {
                status: 403, code, ..
            } if code == "AccessDenied" => {
                if !self.denied_said.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "s3://{}: AccessDenied for {key}, which is taken for an object that is not there; with the \
                         permission s3:ListBucket S3 can tell the two apart",
                        self.name
                    );
                }
                Ok(())
            }
            _ => Err(self.explain(doing, key, fault)),
        }
    }

    fn explain(&self, doing: &'static str, key: &str, fault: Fault) -> ObjectError {
        let why = match &fault.kind {
            FaultKind::Local(words) => words.clone(),
            FaultKind::Credentials(words) => words.clone(),
            FaultKind::Network { words, .. } => format!(
                "{}: {words}; is the endpoint right (endpoint= in store_uri, AWS_ENDPOINT_URL_S3), and can this host reach it?",
                self.endpoint
            ),
            FaultKind::Answer { status, code, words, region } => {
                let mut why = format!("{} answered {status}", self.endpoint);
                if !code.is_empty() {
                    why.push_str(&format!(" {code}"));
                }
                if !words.is_empty() {
                    why.push_str(&format!(": {}", words.trim_end_matches('.')));
                }
                why.push_str(&self.hint(*status, code, region.as_deref()));
                why
            }
        };
        let tries = match fault.tries {
            0 | 1 => String::new(),
            n => format!(" (tried {n} times)"),
        };
        ObjectError {
            doing,
            what: format!("s3://{}/{key}", self.name),
            why: format!("{why}{tries}"),
        }
    }

    fn hint(&self, status: u16, code: &str, region: Option<&str>) -> String {
        if let Some(region) = region.filter(|region| *region != self.region) {
            return format!(
                "; the bucket is in region {region}: write region={region} in store_uri"
            );
        }
        let text = match (code, status) {
            ("NoSuchBucket", _) => {
                "; there is no such bucket at this endpoint: make it, or check its name, region= and endpoint="
            }
            ("AccessDenied", _) => {
                return format!(
                    "; {} needs s3:PutObject, s3:GetObject, s3:AbortMultipartUpload and s3:ListBucket here",
                    self.source
                );
            }
            ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken", _) => {
                return format!("; check the credentials, which came from {}", self.source);
            }
            ("RequestTimeTooSkewed", _) => "; set the clock of this host",
            ("EntityTooLarge", _) => "; do not switch multipart-upload off",
            ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, 301 | 307) => {
                "; the bucket is in another region or at another endpoint: check region= and endpoint="
            }
            (_, 403) => {
                return format!("; check the credentials, which came from {}", self.source);
            }
            (_, 200) => "; is this a server that speaks S3?",
            _ => "",
        };
        text.to_owned()
    }
}

impl Fault {
    fn local(path: &Path, error: &io::Error) -> Fault {
        Fault {
            kind: FaultKind::Local(local_error(path, error)),
            tries: 1,
        }
    }
}

impl FaultKind {
    /// Whether another try may end otherwise.
    fn is_passing(&self) -> bool {
        match self {
            FaultKind::Network { passing, .. } => *passing,
            FaultKind::Local(_) | FaultKind::Credentials(_) => false,
            FaultKind::Answer { status, code, .. } => {
                *status == 429
                    || (*status >= 500 && *status != 501)
                    || matches!(
                        &**code,
                        "SlowDown"
                            | "InternalError"
                            | "ServiceUnavailable"
                            | "RequestTimeout"
                            | "Throttling"
                            | "OperationAborted"
                    )
            }
        }
    }

    /// Whether the credentials ended or were replaced.
    fn is_expiry(&self) -> bool {
        matches!(self, FaultKind::Answer { code, .. } if matches!(&**code, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired"))
    }
}

fn not_understood(answer: &str, tries: u32) -> Fault {
    Fault {
        kind: FaultKind::Answer {
            status: 200,
            code: String::new(),
            words: format!(
                "an answer that S3 would not give: {}",
                clip(&plain(answer.trim()), WORDS_BYTES_MAX)
            ),
            region: None,
        },
        tries,
    }
}

fn network_error(error: &ureq::Error, limits: Limits) -> FaultKind {
    let (words, passing) = match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (
            format!("no connection within {} s", limits.connect.as_secs_f32()),
            true,
        ),
        ureq::Error::Timeout(_) => (
            format!("nothing moved for {} s", limits.quiet.as_secs_f32()),
            true,
        ),
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(inner @ ureq::Error::Timeout(_)) => return network_error(inner, limits),
            // That is how rustls says that it does not like a certificate, or that this is not TLS.
            _ if error.kind() == io::ErrorKind::InvalidData => (
                format!(
                    "{} (AWS_CA_BUNDLE may name a file with the authority's certificate)",
                    plain_error(error)
                ),
                false,
            ),
            _ => (plain_error(error), true),
        },
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_)
        | ureq::Error::BodyStalled => (error.to_string(), true),
        other => (other.to_string(), false),
    };
    FaultKind::Network { words, passing }
}

fn local_error(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {}", path.display(), plain_error(error))
}

impl Payload<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Payload::Nothing => 0,
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Slice { bytes, .. } => *bytes,
        }
    }

    fn hash(&self) -> Result<Sha256Hash, String> {
        match self {
            Payload::Nothing => Ok(sha256(b"")),
            Payload::Bytes(bytes) => Ok(sha256(bytes)),
            Payload::Slice { path, .. } => {
                let mut hasher = Sha256::new();
                let mut reader = self.reader()?;
                let mut buffer = vec![0; HASH_BUFFER_BYTES];
                loop {
                    match reader.read(&mut buffer) {
                        Ok(0) => return Ok(hasher.finalize().into()),
                        Ok(bytes) => hasher.update(&buffer[..bytes]),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(local_error(path, &error)),
                    }
                }
            }
        }
    }

    fn reader(&self) -> Result<PayloadReader<'_>, String> {
        let inner: Box<dyn Read + '_> = match self {
            Payload::Nothing => Box::new(io::empty()),
            Payload::Bytes(bytes) => Box::new(*bytes),
            Payload::Slice { path, from, bytes } => {
                let open = || -> io::Result<io::Take<File>> {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(*from))?;
                    Ok(file.take(*bytes))
                };
                Box::new(open().map_err(|error| local_error(path, &error))?)
            }
        };
        Ok(PayloadReader {
            inner,
            left: self.bytes(),
            failed: None,
        })
    }
}

/// Reads a payload and remembers if it was we who failed and not the network.
struct PayloadReader<'a> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    failed: Option<String>,
}

impl Read for PayloadReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.inner.read(buf) {
            Ok(0) if self.left > 0 && !buf.is_empty() => Err(io::Error::other(
                "the file became shorter while it was sent",
            )),
            read => read,
        };
        match &read {
            Ok(bytes) => self.left = self.left.saturating_sub(*bytes as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.failed = Some(format!("cannot read what is to be sent: {error}")),
        }
        read
    }
}

/// An object on its way to us.
struct Download {
    inner: Arc<Inner>,
    key: String,
    body: ureq::BodyReader<'static>,
    at: u64,
    size: Option<u64>,
    tag: Option<String>,
    resumes: u32,
    began: Instant,
}

impl Download {
    fn new(
        inner: Arc<Inner>,
        key: &str,
        response: Response<ureq::Body>,
        began: Instant,
    ) -> Download {
        Download {
            inner,
            key: key.to_owned(),
            size: length(&response),
            tag: header(&response, "etag"),
            body: response.into_body().into_reader(),
            at: 0,
            resumes: 0,
            began,
        }
    }

    /// Goes on after it broke off.
    fn resume(&mut self, error: &io::Error) -> io::Result<()> {
        self.resumes += 1;
        let fault = |words: String| FaultKind::Network {
            words,
            passing: false,
        };
        let broke = |download: &Download, why: String| {
            let kind = fault(format!("it broke off after {} bytes: {why}", download.at));
            let tries = download.resumes;
            let error = download
                .inner
                .explain("read", &download.key, Fault { kind, tries });
            io::Error::other(error)
        };
        let (Some(tag), Some(_)) = (&self.tag, self.size) else {
            return Err(broke(self, plain_error(error)));
        };
        if self.resumes > RESUMES_MAX {
            return Err(broke(self, plain_error(error)));
        }
        let mut call = Call::new("GET", &self.key);
        call.headers.push(("range", format!("bytes={}-", self.at)));
        call.headers.push(("if-match", tag.clone()));
        match self.inner.send(&call) {
            Ok(response) if response.status() == 206 => {
                self.body = response.into_body().into_reader();
                Ok(())
            }
            Ok(_) => Err(broke(self, plain_error(error))),
            Err(Fault {
                kind: FaultKind::Answer { status: 412, .. },
                ..
            }) => Err(broke(self, "the object was replaced meanwhile".to_owned())),
            Err(fault) => {
                let error = self.inner.explain("read", &self.key, fault);
                Err(io::Error::other(error))
            }
        }
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.body.read(buf) {
                Ok(0) if !buf.is_empty() && self.size.is_some_and(|size| self.at < size) => {
                    io::Error::from(io::ErrorKind::UnexpectedEof)
                }
                Ok(bytes) => {
                    self.at += bytes as u64;
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => error,
            };
            self.resume(&error)?;
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.inner.requests.get(self.at, self.began);
    }
}

/// The client: connections are kept and used again by all threads.
fn agent(env: &dyn Fn(&str) -> Option<String>, limits: Limits) -> Result<Agent, String> {
    let roots = match env("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let pem = fs::read(&path).map_err(|error| {
                format!("AWS_CA_BUNDLE: cannot read {path}: {}", plain_error(&error))
            })?;
            let certificates: Vec<_> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(format!("AWS_CA_BUNDLE: there is no certificate in {path}"));
            }
            RootCerts::from(certificates)
        }
    };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("hydrad/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_per_read(Some(limits.quiet))
        .timeout_per_write(Some(limits.quiet))
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .build();
    Ok(config.into())
}

fn region_of_profile(
    env: &dyn Fn(&str) -> Option<String>,
    source: &Source,
    profile: Option<&str>,
) -> Result<String, S3Error> {
    let name = match (profile, source) {
        (Some(name), _) => name.to_owned(),
        (None, Source::Profile { name, .. }) => name.clone(),
        (None, _) => env("AWS_PROFILE")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
    };
    match Files::from_env(env).setting(&name, "region") {
        Ok(region) => Ok(region.unwrap_or_else(|| REGION_DEFAULT.to_owned())),
        // Where nothing else of the files is needed they need not be readable.
        Err(error) if matches!(source, Source::Profile { .. }) => Err(S3Error::Setup(error)),
        Err(_) => Ok(REGION_DEFAULT.to_owned()),
    }
}

/// Scheme and authority of `host`, `host:port` or `https://host:port`; a usual port is left out, as in the host header.
fn split_endpoint(
    endpoint: &str,
    scheme: Option<&'static str>,
) -> Result<(&'static str, String), S3Error> {
    let (written, rest) = match endpoint.split_once("://") {
        Some(("http", rest)) => (Some("http"), rest),
        Some(("https", rest)) => (Some("https"), rest),
        Some(_) => (None, ""),
        None => (None, endpoint),
    };
    let scheme = written.or(scheme).unwrap_or("https");
    let authority = rest.trim_end_matches('/');
    let usual = if scheme == "http" { ":80" } else { ":443" };
    let authority = authority.strip_suffix(usual).unwrap_or(authority);
    let parsed: Result<http::uri::Authority, _> = authority.parse();
    if authority.contains('@') || parsed.is_err() {
        return Err(S3Error::Setup(format!(
            "endpoint={endpoint}: write HOST, HOST:PORT or https://HOST:PORT"
        )));
    }
    Ok((scheme, authority.to_owned()))
}

fn header(response: &Response<ureq::Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

fn length(response: &Response<ureq::Body>) -> Option<u64> {
    header(response, "content-length")?.parse().ok()
}

/// The 7 of `content-range: bytes 0-0/7`.
fn total_of_range(response: &Response<ureq::Body>) -> Option<u64> {
    header(response, "content-range")?
        .rsplit_once('/')?
        .1
        .parse()
        .ok()
}

/// The text of the first element of this name in an answer of S3's, which has neither attributes on those we look for
/// nor nested elements of the same name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#34;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(uri: &str, env: &[(&str, &str)]) -> Result<Bucket, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut uri = StoreUri::parse(uri).map_err(|error| error.to_string())?;
        let env = |name: &str| {
            let own = env.iter().find(|(key, _)| *key == name);
            let usual = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s")];
            let found = own.or_else(|| usual.iter().find(|(key, _)| *key == name));
            found.map(|(_, value)| (*value).to_owned())
        };
        let bucket = Bucket::open(&mut uri, &env, Folder::at(dir.path()))
            .map_err(|error| error.to_string())?;
        uri.params
            .finish(PARAMS)
            .map_err(|error| error.to_string())?;
        Ok(bucket)
    }

    #[test]
    fn addresses() {
        let address = |uri: &str, env: &[(&str, &str)]| {
            let bucket = bucket(uri, env).expect("a bucket");
            format!("{}{} {}", bucket.0.endpoint, bucket.0.root, bucket.0.region)
        };
        for (uri, env, want) in [
            (
                "s3://b",
                &[][..],
                "https://b.s3.us-east-1.amazonaws.com/ us-east-1",
            ),
            (
                "s3://b?region=eu-west-1",
                &[],
                "https://b.s3.eu-west-1.amazonaws.com/ eu-west-1",
            ),
            (
                "s3://b?region=cn-north-1",
                &[],
                "https://b.s3.cn-north-1.amazonaws.com.cn/ cn-north-1",
            ),
            (
                "s3://b",
                &[("AWS_REGION", "eu-west-2")],
                "https://b.s3.eu-west-2.amazonaws.com/ eu-west-2",
            ),
            (
                "s3://a.b",
                &[],
                "https://s3.us-east-1.amazonaws.com/a.b/ us-east-1",
            ),
            (
                "s3://b?endpoint=minio.example:9000&scheme=http",
                &[],
                "http://minio.example:9000/b/ us-east-1",
            ),
            (
                "s3://b?endpoint=https://minio.example:443/",
                &[],
                "https://minio.example/b/ us-east-1",
            ),
            (
                "s3://b?endpoint=m.example&addressing-style=virtual",
                &[],
                "https://b.m.example/ us-east-1",
            ),
            (
                "s3://b",
                &[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")],
                "http://127.0.0.1:9/b/ us-east-1",
            ),
        ] {
            assert_eq!(address(uri, env), want, "{uri}");
        }
        for (uri, words) in [
            ("s3://", "is not the name of a bucket"),
            ("s3://a/b", "is not the name of a bucket"),
            ("s3://b?scheme=ftp", "scheme=ftp: write http or https"),
            ("s3://b?endpoint=ftp://x", "endpoint=ftp://x: write HOST"),
            (
                "s3://b?endpoint=user@host",
                "endpoint=user@host: write HOST",
            ),
            ("s3://b?multipart-chunk-size=big", "write a whole number"),
        ] {
            let error = bucket(uri, &[]).err().expect("must fail");
            assert!(error.contains(words), "{uri}: {error}");
        }
        let text = format!(
            "{:?}",
            bucket("s3://b", &[]).expect("a bucket").describe_access()
        );
        assert!(text.contains("AWS_ACCESS_KEY_ID (A)"), "{text}");
    }

    #[test]
    fn elements_of_answers() {
        let xml =
            "<?xml version=\"1.0\"?><Error><Code>A&amp;lt;</Code><Message>x</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("A&lt;"));
        assert_eq!(element(xml, "Region"), None);
        assert_eq!(element("<Code>unclosed", "Code"), None);
    }
}
