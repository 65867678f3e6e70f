//! An HTTP server that keeps what it is told and answers, or does not, as a test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::process::eventually;
use super::Certificate;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Told {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Told {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// What a request gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Everything after `HTTP/1.1 `: status line, headers, empty line, body.
    Text(String),
    /// Nothing, until the client goes or the recorder is dropped.
    Hang,
    /// Bytes that are no HTTP.
    Garbage,
    /// One byte of an answer that never ends every 50 ms.
    Drip,
}

impl Answer {
    pub fn status(status: &str) -> Answer {
        Answer::Text(format!("{status}\r\nContent-Length: 2\r\n\r\nno"))
    }
}

type Judge = Box<dyn Fn(&Told) -> Answer + Send + Sync>;

struct Shared {
    told: Mutex<Vec<Told>>,
    judge: Judge,
    leaving: AtomicBool,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// The server; ended when dropped.
pub struct Recorder {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
}

impl Recorder {
    pub fn accepting() -> Recorder {
        Recorder::start(|_| Answer::Text("200 OK\r\nContent-Length: 0\r\n\r\n".into()))
    }

    /// `judge` may wait: each connection has a thread.
    pub fn start(judge: impl Fn(&Told) -> Answer + Send + Sync + 'static) -> Recorder {
        Recorder::start_with(None, Box::new(judge))
    }

    /// The same behind TLS.
    pub fn start_tls(
        own: &Certificate,
        judge: impl Fn(&Told) -> Answer + Send + Sync + 'static,
    ) -> Recorder {
        Recorder::start_with(Some(own.server_config()), Box::new(judge))
    }

    fn start_with(tls: Option<Arc<ServerConfig>>, judge: Judge) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            told: Mutex::default(),
            judge,
            leaving: AtomicBool::new(false),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let inner = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if inner.leaving.load(Ordering::SeqCst) {
                    return;
                }
                let (inner, tls) = (inner.clone(), tls.clone());
                std::thread::spawn(move || {
                    // A client that says nothing is given up at last.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
                    match tls {
                        None => inner.serve_all(stream),
                        Some(config) => {
                            let server = ServerConnection::new(config).expect("a connection");
                            inner.serve_all(StreamOwned::new(server, stream));
                        }
                    }
                });
            }
        });
        Recorder {
            address,
            shared,
            scheme,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn told(&self) -> Vec<Told> {
        self.shared.told.lock().expect("not poisoned").clone()
    }

    pub fn count(&self) -> usize {
        self.shared.told.lock().expect("not poisoned").len()
    }

    pub fn wait(&self, count: usize) -> Vec<Told> {
        eventually(&format!("{count} requests"), || {
            let told = self.told();
            (told.len() >= count).then_some(told)
        })
    }

    /// The most requests that were being answered at once.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve_all(&self, mut stream: impl Read + Write) {
        while self.serve(&mut stream).is_some() {}
    }

    fn serve(&self, stream: &mut (impl Read + Write)) -> Option<()> {
        let told = read_request(stream)?;
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.told.lock().expect("not poisoned").push(told.clone());
        let answer = (self.judge)(&told);
        self.now.fetch_sub(1, Ordering::SeqCst);
        match answer {
            Answer::Text(text) => stream.write_all(format!("HTTP/1.1 {text}").as_bytes()).ok(),
            Answer::Garbage => {
                let _ = stream.write_all(b"\x00\x01garbage\r\n\r\n\xff\xff");
                None
            }
            Answer::Hang => {
                // Until the client goes.
                let _ = stream.read(&mut [0]);
                None
            }
            Answer::Drip => {
                let head = b"HTTP/1.1 503 Slow\r\nContent-Length: 100000\r\n\r\n";
                let mut bytes = head.iter().copied().chain(std::iter::repeat(b'.'));
                while !self.leaving.load(Ordering::SeqCst) {
                    stream.write_all(&[bytes.next()?]).ok()?;
                    stream.flush().ok()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                None
            }
        }
    }
}

fn read_request(stream: &mut impl Read) -> Option<Told> {
    let mut bytes = Vec::new();
    let head = loop {
        let mut buffer = [0; 4_096];
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    while bytes.len() < head + length {
        let mut buffer = [0; 4_096];
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
    }
    let body = String::from_utf8_lossy(&bytes[head..]).into_owned();
    Some(Told {
        method,
        path,
        headers,
        body,
    })
}
