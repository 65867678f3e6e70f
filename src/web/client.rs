//! HTTP as a client: how other servers are asked. TLS with the host's certificate authorities, a deadline for everything,
//! redirections within one server alone, and never more of an answer than its reader wants.
//!
//! Does not know whose servers these are, nor what another try may mend. Addresses and headers may be secrets: messages name
//! the host alone.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Request};
use ureq::Agent;

use crate::base::text;
use crate::sys::child::plain_error;

/// Of what a server says of its errors so much is shown.
const WORDS_MAX: usize = 300;
const CONNECT_MAX: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS_MAX: usize = 16;
const REDIRECTS_MAX: u32 = 5;

/// The client's machinery, for as many threads as wanted.
pub fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("hydrad/", env!("CARGO_PKG_VERSION")))
        .tls_config(
            ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .build(),
        )
        .timeout_connect(Some(CONNECT_MAX))
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .build();
    config.into()
}

/// A GET.
pub struct Get<'a> {
    pub url: &'a str,
    pub headers: &'a [(&'a str, String)],
    pub time_max: Duration,
    pub bytes_max: u64,
}

/// What a server answered with a status of 2xx.
#[derive(Debug)]
pub struct Got {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Asks, and makes sure that it was answered. Goes where the server leads to, as long as that is the same server: headers may be
/// meant for it alone.
///
/// # Errors
/// A message that names the host alone.
pub fn get(agent: &Agent, get: &Get<'_>) -> Result<Got, String> {
    let until = Instant::now() + get.time_max;
    let mut url = get.url.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        match get_one(agent, get, &url, until)? {
            Answer::Got(got) => return Ok(got),
            Answer::Elsewhere(place) => {
                url = same_server(&url, &place).ok_or_else(|| {
                    format!("{} leads to another server, {}", host(&url), host(&place))
                })?;
            }
        }
    }
    Err(format!("{} leads on and on", host(get.url)))
}

enum Answer {
    Got(Got),
    /// A redirection.
    Elsewhere(String),
}

fn get_one(agent: &Agent, get: &Get<'_>, url: &str, until: Instant) -> Result<Answer, String> {
    let host = host(url);
    let mut request = Request::get(url);
    for (name, value) in get.headers {
        request = request.header(*name, value);
    }
    let request = request
        .body(())
        .map_err(|_| format!("{host}: the address or a header cannot be sent"))?;
    let request = agent
        .configure_request(request)
        .timeout_global(Some(until.saturating_duration_since(Instant::now())))
        .build();
    let failed = |error: &ureq::Error| format!("{host}: {}", words(error, get.time_max));
    let mut response = agent.run(request).map_err(|error| failed(&error))?;
    let status = response.status();
    let location = response.headers().get("location");
    if let (301 | 302 | 303 | 307 | 308, Some(Ok(place))) =
        (status.as_u16(), location.map(|place| place.to_str()))
    {
        return Ok(Answer::Elsewhere(place.to_owned()));
    }
    let mut body = Vec::new();
    let read = response
        .body_mut()
        .as_reader()
        .take(get.bytes_max + 1)
        .read_to_end(&mut body);
    if !status.is_success() {
        let reason = status.canonical_reason().unwrap_or_default();
        let said = text::presentable(&body, WORDS_MAX);
        let said = said.trim().replace('\n', " ");
        let answered = format!("{host} answered {} {reason}", status.as_u16());
        return Err(match said.is_empty() {
            true => answered.trim_end().to_owned(),
            false => format!("{}: {said}", answered.trim_end()),
        });
    }
    read.map_err(|error| format!("{host}: {}", io_words(&error, get.time_max)))?;
    if body.len() as u64 > get.bytes_max {
        return Err(format!(
            "{host}: the answer has more than {} MB",
            get.bytes_max >> 20
        ));
    }
    Ok(Answer::Got(Got {
        headers: response.headers().clone(),
        body,
    }))
}

/// An address that one of a server's answers names, if it is on the same server; it may be a path alone.
pub fn same_server(url: &str, place: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let server = format!("{scheme}://{}", &rest[..end]);
    if place.starts_with('/') && !place.starts_with("//") {
        return Some(server + place);
    }
    let after = place.strip_prefix(&server)?;
    matches!(after.chars().next(), None | Some('/' | '?')).then(|| place.to_owned())
}

/// The host and port of an address.
pub fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

/// What went wrong, without the address.
pub fn words(error: &ureq::Error, time_max: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => {
            format!(
                "no answer within {} s",
                time_max.as_millis().div_ceil(1_000)
            )
        }
        ureq::Error::Io(error) => io_words(error, time_max),
        ureq::Error::BadUri(_) => "the address cannot be used".to_owned(),
        error => text::presentable(error.to_string().as_bytes(), WORDS_MAX),
    }
}

fn io_words(error: &io::Error, time_max: Duration) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(inner @ ureq::Error::Timeout(_)) => words(inner, time_max),
        _ => plain_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(host("https://u:p@h:1/x?y"), "h:1");
        assert_eq!(host("http://h?token=1"), "h");
        let next = |place| same_server("https://h:1/a?b", place);
        assert_eq!(next("/c").as_deref(), Some("https://h:1/c"));
        assert!(next("https://h:1/x").is_some());
        for other in [
            "https://h:11/x",
            "http://h:1/x",
            "//g/x",
            "https://h:1@g/x",
            "x",
        ] {
            assert_eq!(next(other), None, "{other}");
        }
    }
}
