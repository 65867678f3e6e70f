//! Telling web servers: one client for all plugins. Every call has a deadline from the first byte to the last; a host that asks
//! for a pause gets it, whoever wants to talk to it, and none gets more requests than its rate allows.
//!
//! Addresses may be secrets (Slack's are): messages name the host alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Request};
use ureq::Agent;

use super::plan::RETRY_AFTER_MS_MAX;
use super::plugins::Failure;
use crate::base::lock::lock;
use crate::base::text;
use crate::config::settings::HostRate;
use crate::model::dates;
use crate::sys::child::plain_error;
use crate::web::client::{self, host, words};

/// Of an answer so much is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Of an answer so much is shown.
const WORDS_MAX: usize = 300;
/// Hosts whose wish for a pause is remembered.
const HOSTS_MAX: usize = 1_024;
/// How long is slept at once for a turn.
const TURN_LOOK: Duration = Duration::from_millis(200);
/// Of what a host's rate allows so much may come at once, seconds.
const BURST_SECS: f64 = 10.0;

/// The client.
pub struct Client {
    agent: Agent,
    paused: Mutex<BTreeMap<String, Instant>>,
    limits: Mutex<Limits>,
}

/// What hosts may be sent.
#[derive(Default)]
struct Limits {
    rates: Vec<HostRate>,
    buckets: BTreeMap<String, Bucket>,
}

/// Requests that may be made at once, refilled as time goes by.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one; else says after what time there will be one.
    fn take(&mut self, now: Instant, per_minute: u32) -> Result<(), Duration> {
        let per_sec = f64::from(per_minute) / 60.0;
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * per_sec).min(burst(per_minute));
        self.at = now;
        // A millisecond's rounding is none's business.
        if self.left >= 0.999 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / per_sec))
    }
}

fn burst(per_minute: u32) -> f64 {
    (f64::from(per_minute) / 60.0 * BURST_SECS).max(1.0)
}

/// May a request wait for its turn?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The first of a delivery: if it is too early, everything is put off.
    First,
    /// Others were made already: the thread waits for a moment rather than make those again.
    Next,
}

/// How something is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Post,
    Put,
}

/// A POST or PUT.
pub struct Post<'a> {
    pub verb: Verb,
    pub url: &'a str,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
    pub time_max: Duration,
    pub turn: Turn,
}

impl Default for Client {
    fn default() -> Client {
        Client {
            agent: client::agent(),
            paused: Mutex::default(),
            limits: Mutex::default(),
        }
    }
}

impl Client {
    /// From now on these rates hold.
    pub fn set_rates(&self, rates: &[HostRate]) {
        let mut limits = lock(&self.limits);
        if limits.rates != rates {
            limits.rates = rates.to_vec();
            limits.buckets.clear();
        }
    }

    /// Whether a host may get a request now; else the time until then.
    fn take_turn(&self, host: &str) -> Result<(), Duration> {
        let limits = &mut *lock(&self.limits);
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let of = |wanted: &str| limits.rates.iter().find(|rate| rate.host == wanted);
        let Some(rate) = of(host).or_else(|| of(name)).or_else(|| of("*")) else {
            return Ok(());
        };
        let (now, per_minute) = (Instant::now(), rate.per_minute);
        if limits.buckets.len() >= HOSTS_MAX && !limits.buckets.contains_key(host) {
            limits.buckets.clear();
        }
        let full = Bucket {
            left: burst(per_minute),
            at: now,
        };
        let bucket = limits.buckets.entry(host.to_owned()).or_insert(full);
        bucket.take(now, per_minute)
    }

    /// Waits until a host may get a request, or says why that has to be put off.
    fn wait_turn(&self, host: &str, post: &Post<'_>) -> Result<(), Failure> {
        match (self.pause_left(host), post.turn) {
            (Some(left), Turn::First) => {
                let text = format!("{host} asked for a pause");
                return Err(Failure::postponed(text, left));
            }
            (Some(left), Turn::Next) => {
                return Err(Failure::later(format!("{host} asked for a pause"), left));
            }
            (None, _) => {}
        }
        let until = Instant::now() + post.time_max;
        while let Err(wait) = self.take_turn(host) {
            let text = format!("{host} has had as much as notification_rates allows");
            match post.turn {
                Turn::First => return Err(Failure::postponed(text, wait)),
                Turn::Next if Instant::now() + wait > until => {
                    return Err(Failure::later(text, wait))
                }
                Turn::Next => std::thread::sleep(wait.min(TURN_LOOK)),
            }
        }
        Ok(())
    }

    /// Posts, and makes sure that it was accepted. Returns the answer's text.
    ///
    /// # Errors
    /// What went wrong, and whether another try may help.
    pub fn post(&self, post: &Post<'_>) -> Result<String, Failure> {
        let host = host(post.url);
        self.wait_turn(host, post)?;
        let mut request = match post.verb {
            Verb::Post => Request::post(post.url),
            Verb::Put => Request::put(post.url),
        };
        for (name, value) in post.headers {
            request = request.header(name, value);
        }
        let request = request.body(post.body).map_err(|_| {
            Failure::refused(format!("{host}: the address or a header cannot be sent"))
        })?;
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(Some(post.time_max))
            .build();
        let mut response = self
            .agent
            .run(request)
            .map_err(|error| Failure::again(format!("{host}: {}", words(&error, post.time_max))))?;
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut bytes);
        let body = text::presentable(&bytes, ANSWER_BYTES_MAX as usize);
        if let (200..=299, Some(pause)) = (status, pause_wanted(response.headers())) {
            self.pause(host, pause);
        }
        match status {
            // Accepted is accepted, also if the rest of the answer does not come.
            200..=299 => Ok(body),
            _ => {
                let mut said = match response.status().canonical_reason() {
                    Some(reason) => format!("{host} answered {status} {reason}"),
                    None => format!("{host} answered {status}"),
                };
                let shown = text::clip(&hidden(body.trim(), post), WORDS_MAX).replace('\n', " ");
                if !shown.is_empty() {
                    said.push_str(": ");
                    said.push_str(&shown);
                }
                if let Err(error) = read {
                    said.push_str(&format!(" ({})", plain_error(&error)));
                }
                let pause = pause_wanted(response.headers()).or_else(|| pause_in(status, &body));
                Err(self.judge(host, status, pause, said))
            }
        }
    }

    /// Whether another try may help: not where the server says that the request is wrong. What it says of rights may be
    /// mended (a token is read anew for each try).
    fn judge(&self, host: &str, status: u16, pause: Option<Duration>, said: String) -> Failure {
        match (status, pause) {
            (401 | 403 | 407 | 408 | 425 | 429 | 500..=599, Some(pause)) => {
                self.pause(host, pause);
                Failure::later(said, pause)
            }
            (401 | 403 | 407 | 408 | 425 | 429 | 500..=599, None) => Failure::again(said),
            _ => Failure::refused(said),
        }
    }

    fn pause_left(&self, host: &str) -> Option<Duration> {
        let until = *lock(&self.paused).get(host)?;
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    fn pause(&self, host: &str, pause: Duration) {
        let mut paused = lock(&self.paused);
        let now = Instant::now();
        if paused.len() >= HOSTS_MAX {
            paused.retain(|_, until| *until > now);
        }
        if paused.len() < HOSTS_MAX {
            paused.insert(host.to_owned(), now + pause);
        }
    }
}

/// `Retry-After` in seconds or as a date, or GitHub's `X-RateLimit-Reset` when nothing remains.
fn pause_wanted(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let now = crate::sys::clock::unix_now();
    let secs = match text("retry-after").map(str::trim) {
        Some(after) => match after.parse::<u64>() {
            Ok(secs) => secs,
            Err(_) => {
                let date = dates::from_http(after)?;
                u64::try_from(date - now).unwrap_or(0)
            }
        },
        None if text("x-ratelimit-remaining")?.trim() == "0" => {
            let reset: i64 = text("x-ratelimit-reset")?.trim().parse().ok()?;
            u64::try_from(reset - now).unwrap_or(0)
        }
        None => return None,
    };
    let max = Duration::from_millis(RETRY_AFTER_MS_MAX);
    Some(Duration::from_secs(secs).min(max)).filter(|pause| !pause.is_zero())
}

/// `retry_after_ms` in the answer itself, as Matrix has it.
fn pause_in(status: u16, body: &str) -> Option<Duration> {
    let answer: serde_json::Value = (status == 429).then(|| serde_json::from_str(body).ok())??;
    let pause = Duration::from_millis(answer["retry_after_ms"].as_u64()?);
    Some(pause.min(Duration::from_millis(RETRY_AFTER_MS_MAX))).filter(|pause| !pause.is_zero())
}

/// Headers that are no secrets.
const OPEN_HEADERS: [&str; 4] = [
    "content-type",
    "accept",
    "idempotency-key",
    "x-hydrad-event",
];
/// What is shorter is no secret: it would be everywhere.
const SECRET_BYTES_MIN: usize = 4;

/// An answer without what we sent that may be secret, for servers that repeat what they got.
fn hidden(body: &str, post: &Post<'_>) -> String {
    let mut secrets: Vec<&str> = Vec::new();
    for (name, value) in post.headers {
        if !OPEN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            secrets.push(value);
            secrets.extend(value.split_whitespace());
        }
    }
    let rest = post.url.split_once("://").map_or("", |(_, rest)| rest);
    if let Some((_, path)) = rest.split_once('/') {
        secrets.push(path);
        secrets.extend(path.split(['/', '?', '&', '=']));
    }
    secrets.retain(|secret| secret.len() >= SECRET_BYTES_MIN);
    // The longest first, so that no part of one stays.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let mut text = body.to_owned();
    for secret in secrets {
        text = text.replace(secret, "***");
    }
    text
}

/// Whether an address can be posted to at all.
///
/// # Errors
/// A message without the address.
pub fn is_usable(url: &str) -> Result<(), String> {
    let uri: ureq::http::Uri = url
        .parse()
        .map_err(|error| format!("the address cannot be used: {error}"))?;
    // What cannot be read as a port is no port to the parser.
    let has_wrong_port = uri.port().is_none() && {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let after_host = authority.rsplit(']').next().unwrap_or_default();
        after_host
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .contains(':')
    };
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() && !has_wrong_port => Ok(()),
        _ => Err(
            "the address cannot be used: expected http://HOST/... or https://HOST/...".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_ten_seconds_worth_through_and_then_one_after_the_other() {
        let start = Instant::now();
        let secs = |n: u64| start + Duration::from_secs(n);
        let mut bucket = Bucket {
            left: burst(60),
            at: start,
        };
        for _ in 0..10 {
            assert_eq!(bucket.take(start, 60), Ok(()));
        }
        let wait = bucket.take(start, 60).expect_err("too much");
        assert_eq!(wait.as_millis(), 1_000);
        assert_eq!(bucket.take(secs(1), 60), Ok(()));
        assert!(bucket.take(secs(1), 60).is_err());
        // It does not fill for ever.
        for _ in 0..10 {
            assert_eq!(bucket.take(secs(1_000), 60), Ok(()));
        }
        assert!(bucket.take(secs(1_000), 60).is_err());
        assert_eq!(burst(1), 1.0, "a slow rate still has one");
    }

    #[test]
    fn addresses() {
        assert_eq!(is_usable("https://h:1/x?y"), Ok(()));
        assert_eq!(is_usable("http://[::1]/x"), Ok(()));
        assert_eq!(is_usable("http://u:p@h/x"), Ok(()));
        for wrong in [
            "http://h h/",
            "http://h:port/",
            "http://h:99999/",
            "ftp://h/",
            "h",
        ] {
            assert!(is_usable(wrong).is_err(), "{wrong}");
        }
    }
}
