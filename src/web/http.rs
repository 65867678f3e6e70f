//! Requests and answers as bytes: what a GET or HEAD looks like, and what goes back. Pure.

use crate::base::text::percent_decoded;

/// A request's line and headers at most, bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Headers of a request at most.
const HEADERS_MAX: usize = 64;

/// A request without its headers, which nothing here depends on but the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The path, decoded, without the query.
    pub path: String,
    /// What follows the `?`, as it came.
    pub query: String,
    /// Only the head of the answer is wanted.
    pub is_head: bool,
    /// The connection may be used for another request.
    pub keep_alive: bool,
}

impl Request {
    /// The value of `name` in the query, if it is there.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decoded(value).ok()).flatten()
        })
    }
}

/// An answer's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    ContentTooLarge,
    HeadersTooLarge,
    InternalError,
    Unavailable,
    VersionNotSupported,
}

impl Status {
    pub const ALL: [Status; 10] = [
        Status::Ok,
        Status::BadRequest,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::RequestTimeout,
        Status::ContentTooLarge,
        Status::HeadersTooLarge,
        Status::InternalError,
        Status::Unavailable,
        Status::VersionNotSupported,
    ];

    pub fn code(self) -> u16 {
        match self {
            Status::Ok => 200,
            Status::BadRequest => 400,
            Status::NotFound => 404,
            Status::MethodNotAllowed => 405,
            Status::RequestTimeout => 408,
            Status::ContentTooLarge => 413,
            Status::HeadersTooLarge => 431,
            Status::InternalError => 500,
            Status::Unavailable => 503,
            Status::VersionNotSupported => 505,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::RequestTimeout => "Request Timeout",
            Status::ContentTooLarge => "Content Too Large",
            Status::HeadersTooLarge => "Request Header Fields Too Large",
            Status::InternalError => "Internal Server Error",
            Status::Unavailable => "Service Unavailable",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    pub status: Status,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(value: &serde_json::Value) -> Response {
        Response {
            status: Status::Ok,
            content_type: "application/json",
            body: value.to_string().into_bytes(),
        }
    }

    /// Prometheus' text format.
    pub fn metrics(text: String) -> Response {
        Response {
            status: Status::Ok,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: text.into_bytes(),
        }
    }

    /// What went wrong, in JSON as Hydra's queue runner has it: `{"error": ...}`.
    pub fn error(status: Status, message: &str) -> Response {
        Response {
            status,
            ..Response::json(&serde_json::json!({ "error": message }))
        }
    }

    /// As it goes out; without its body for a HEAD.
    pub fn bytes(&self, is_head: bool, keep_alive: bool) -> Vec<u8> {
        let allow = match self.status {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{allow}Connection: {}\r\n\r\n",
            self.status.code(),
            self.status.reason(),
            self.content_type,
            self.body.len(),
            if keep_alive { "keep-alive" } else { "close" },
        );
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// What has been read so far, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A request, and how many bytes it took.
    Request(Request, usize),
    /// More bytes are needed.
    Partial,
    /// The connection is of no use after this answer.
    Bad(Response),
}

/// Takes the first request of `bytes` apart.
pub fn parse(bytes: &[u8]) -> Parsed {
    let bad = |status, message: &str| Parsed::Bad(Response::error(status, message));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return bad(
                Status::HeadersTooLarge,
                "the request's headers are too large",
            );
        }
        Err(httparse::Error::Version) => {
            return bad(Status::VersionNotSupported, "this server speaks HTTP/1.1");
        }
        Err(error) => return bad(Status::BadRequest, &format!("no HTTP request: {error}")),
    };
    let (method, target) = (head.method.unwrap_or(""), head.path.unwrap_or(""));
    let is_1_1 = head.version == Some(1);
    let header = |name: &str| {
        let all = head.headers.iter();
        let mut of_name = all.filter(|header| header.name.eq_ignore_ascii_case(name));
        of_name.next().map(|header| header.value.trim_ascii())
    };
    if is_1_1 && header("host").is_none() {
        return bad(Status::BadRequest, "the request has no Host header");
    }
    if header("content-length").is_some_and(|length| length != b"0")
        || header("transfer-encoding").is_some()
    {
        return bad(
            Status::ContentTooLarge,
            "requests with a body are not taken",
        );
    }
    let connection = header("connection").unwrap_or(b"");
    let says = |word: &str| {
        let words = connection.split(|byte| *byte == b',');
        words
            .map(<[u8]>::trim_ascii)
            .any(|w| w.eq_ignore_ascii_case(word.as_bytes()))
    };
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return bad(Status::MethodNotAllowed, "only GET and HEAD are answered"),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = match percent_decoded(path) {
        Ok(path) if path.starts_with('/') => path,
        _ => return bad(Status::BadRequest, "the request's path makes no sense"),
    };
    let request = Request {
        path,
        query: query.to_owned(),
        is_head,
        keep_alive: if is_1_1 {
            !says("close")
        } else {
            says("keep-alive")
        },
    };
    Parsed::Request(request, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of these bytes, in a line.
    fn check(text: &str, expected: &str) {
        let is = match parse(text.as_bytes()) {
            Parsed::Request(request, length) => format!(
                "{} {} ?{}{}{}",
                if request.is_head { "HEAD" } else { "GET" },
                request.path,
                request.query,
                if request.keep_alive {
                    " kept"
                } else {
                    " closed"
                },
                if length == text.len() {
                    ""
                } else {
                    ", more follows"
                },
            ),
            Parsed::Partial => "more".into(),
            Parsed::Bad(response) => response.status.code().to_string(),
        };
        assert_eq!(is, expected, "{text:?}");
    }

    #[test]
    fn requests_are_taken_apart_and_nonsense_is_called_so() {
        check(
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /metrics ? kept",
        );
        check("GET /metrics HTTP/1.0\r\n\r\n", "GET /metrics ? closed");
        check(
            "HEAD /a%2Fb?x=1&y HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n",
            "HEAD /a/b ?x=1&y closed",
        );
        check(
            "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET",
            "GET / ? kept, more follows",
        );
        check("GET / HTTP/1.1\r\nHost:", "more");
        check("", "more");
        check("GET / HTTP/1.1\r\n\r\n", "400");
        check("GET /%zz HTTP/1.0\r\n\r\n", "400");
        check("GET /%ff HTTP/1.0\r\n\r\n", "400");
        check("GET http://x/ HTTP/1.0\r\n\r\n", "400");
        check("\x16\x03\x01\x02", "400");
        check("GET / HTTP/2.0\r\n\r\n", "505");
        check("POST / HTTP/1.1\r\nHost: x\r\n\r\n", "405");
        check(
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd",
            "413",
        );
        check(
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "413",
        );
        check(
            &format!(
                "GET / HTTP/1.1\r\nHost: {}\r\n\r\n",
                "x".repeat(HEAD_BYTES_MAX)
            ),
            "431",
        );
        check(&format!("GET /{}", "x".repeat(HEAD_BYTES_MAX)), "431");
        check(
            &format!(
                "GET / HTTP/1.1\r\n{}\r\n",
                "a: b\r\n".repeat(HEADERS_MAX + 1)
            ),
            "431",
        );
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }

        #[test]
        fn no_request_line_brings_it_down(target in "[ -~]{0,80}", header in "[ -~]{0,80}") {
            parse(format!("GET {target} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n").as_bytes());
        }
    }
}
