//! An HTTP server that misbehaves as it is told: it answers by itself, or sits in front of another and spoils what passes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Spoil {
    /// It passes.
    Nothing,
    /// It is answered here: the head after `HTTP/1.1 `, and a body.
    Answer(&'static str, String),
    /// The connection ends when half of the request's body has come.
    CutRequest,
    /// It passes, and the connection ends when half of the answer's body has gone.
    CutAnswer,
    /// It passes, and the connection ends before any of the answer.
    LoseAnswer,
    /// No answer for as long as the client waits.
    Hang,
}

impl Spoil {
    /// An error as S3 words it.
    pub fn error(status: &'static str, code: &str) -> Spoil {
        let body = format!(
            "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>made up</Message></Error>"
        );
        Spoil::Answer(status, body)
    }
}

pub struct Unreliable {
    address: SocketAddr,
    shared: Arc<Shared>,
    doorman: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: Option<SocketAddr>,
    /// The first rule whose text is in the request's first line is used and taken away.
    rules: Mutex<VecDeque<(String, Spoil)>>,
    seen: Mutex<Vec<String>>,
    connections: AtomicUsize,
    leaving: AtomicBool,
}

impl Unreliable {
    /// In front of `upstream`; without one, what no rule is for is answered with 500.
    pub fn start(upstream: Option<SocketAddr>) -> Unreliable {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
        });
        let address = listener.local_addr().expect("an address");
        let own = shared.clone();
        let doorman = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.leaving.load(Ordering::SeqCst) {
                    return;
                }
                own.connections.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                std::thread::spawn(move || own.serve(stream));
            }
        });
        Unreliable {
            address,
            shared,
            doorman: Some(doorman),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils the next request whose first line (`PUT /bucket/key?partNumber=2 HTTP/1.1`) contains `needle`.
    pub fn spoil(&self, needle: &str, spoil: Spoil) {
        self.shared
            .rules
            .lock()
            .expect("no panic inside")
            .push_back((needle.to_owned(), spoil));
    }

    /// The first lines of all requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("no panic inside").clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Unreliable {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(doorman) = self.doorman.take() {
            let _ = doorman.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) {
        while let Some(head) = read_head(&mut client) {
            let line = head.lines().next().unwrap_or("").to_owned();
            self.seen
                .lock()
                .expect("no panic inside")
                .push(line.clone());
            let spoil = {
                let mut rules = self.rules.lock().expect("no panic inside");
                let at = rules.iter().position(|(needle, _)| line.contains(needle));
                at.and_then(|at| rules.remove(at)).map(|(_, spoil)| spoil)
            };
            let length = content_length(&head);
            let half = matches!(spoil, Some(Spoil::CutRequest));
            let mut body = vec![0; if half { length / 2 } else { length }];
            if client.read_exact(&mut body).is_err() || half {
                return;
            }
            let lasts = match spoil {
                Some(Spoil::Answer(status, text)) => {
                    let body = if head.starts_with("HEAD ") { "" } else { &text };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
                        text.len()
                    );
                    client.write_all(answer.as_bytes()).is_ok()
                }
                Some(Spoil::Hang) => {
                    let _ = client.read(&mut [0]);
                    false
                }
                spoil => {
                    self.pass(&head, &body, &mut client, spoil);
                    false
                }
            };
            if !lasts {
                return;
            }
        }
    }

    fn pass(&self, head: &str, body: &[u8], client: &mut TcpStream, spoil: Option<Spoil>) {
        let Some(upstream) = self.upstream else {
            let _ = client.write_all(
                b"HTTP/1.1 500 No rule\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
            return;
        };
        let mut server = TcpStream::connect(upstream).expect("the server behind us lives");
        let (line, rest) = head.split_once("\r\n").expect("a head has lines");
        let request = format!("{line}\r\nConnection: close\r\n{rest}");
        server.write_all(request.as_bytes()).expect("sent");
        server.write_all(body).expect("sent");
        let Some(answer) = read_head(&mut server) else {
            return;
        };
        let mut body = Vec::new();
        let _ = server.read_to_end(&mut body);
        let sent = match spoil {
            Some(Spoil::LoseAnswer) => return,
            Some(Spoil::CutAnswer) => body.len() / 2,
            _ => body.len(),
        };
        let _ = client.write_all(answer.as_bytes());
        let _ = client.write_all(&body[..sent]);
    }
}

/// Up to and with the empty line; `None` at the end of the connection.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn content_length(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
