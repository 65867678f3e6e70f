//! A conversation with a mail server. What is said and understood is lettre's; the stream is ours, since every conversation has a
//! deadline as a whole and every reply a bound, which lettre's own client has not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lettre::address::{Address, Envelope};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::commands::{Auth, Data, Ehlo, Mail, Quit, Rcpt, Starttls};
use lettre::transport::smtp::extension::{ClientId, Extension, ServerInfo};
use lettre::transport::smtp::response::Response;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::plugins::Failure;
use crate::base::text;
use crate::config::notify::MailTls;
use crate::sys::authorities::host_authorities;
use crate::sys::child::plain_error;

/// A line of a reply, and the lines of one, are not more than this.
const LINE_BYTES_MAX: u64 = 2_000;
const LINES_MAX: usize = 200;
/// Of a reply so much is shown.
const WORDS_MAX: usize = 300;
/// Exchanges in which a server may ask for more before it lets us in.
const CHALLENGES_MAX: usize = 10;

/// A server, and how it is talked to.
pub struct Server<'a> {
    pub host: &'a str,
    pub port: u16,
    pub tls: MailTls,
    /// User and password.
    pub login: Option<(String, String)>,
    /// What we call ourselves.
    pub hello: &'a str,
    pub time_max: Duration,
}

/// Hands a message over.
///
/// # Errors
/// What went wrong, and whether another try may help: not where the server says that this mail or its recipient is wrong.
pub fn send(server: &Server<'_>, envelope: &Envelope, message: &[u8]) -> Result<(), Failure> {
    let mut talk = Talk::begin(server)?;
    talk.sign_in(server)?;
    talk.hand_over(envelope, message)
}

/// A socket with a time at which it is over.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

enum Stream {
    /// While TLS begins.
    Nothing,
    Plain(BufReader<Timed>),
    Tls(Box<BufReader<StreamOwned<ClientConnection, Timed>>>),
}

struct Talk {
    stream: Stream,
    /// `HOST:PORT`, for messages.
    name: String,
    time_max: Duration,
}

impl Talk {
    fn begin(server: &Server<'_>) -> Result<Talk, Failure> {
        let name = format!("{}:{}", server.host, server.port);
        let until = Instant::now() + server.time_max;
        let failed = |error: &io::Error| match is_late(error) {
            true => Failure::again(late(&name, server.time_max)),
            false => Failure::again(format!("{name}: {}", plain_error(error))),
        };
        let addresses = (server.host, server.port)
            .to_socket_addrs()
            .map_err(|error| failed(&error))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    let stream = Timed { stream, until };
                    let mut talk = Talk {
                        stream: Stream::Plain(BufReader::new(stream)),
                        name,
                        time_max: server.time_max,
                    };
                    if server.tls == MailTls::Always {
                        talk.secure(server.host)?;
                    }
                    return Ok(talk);
                }
                Err(error) => last = error,
            }
        }
        Err(failed(&last))
    }

    /// TLS from here on.
    fn secure(&mut self, host: &str) -> Result<(), Failure> {
        let talk = self.name.clone();
        let failed = |why: String| Failure::again(format!("{talk}: TLS: {why}"));
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failed("the host is neither a name nor an address".to_owned()))?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(host_authorities().map_err(failed)?);
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), name)
            .map_err(|error| failed(error.to_string()))?;
        let Stream::Plain(plain) = std::mem::replace(&mut self.stream, Stream::Nothing) else {
            unreachable!("BUG: TLS begins once");
        };
        // What came unasked before the handshake was not protected by it.
        if !plain.buffer().is_empty() {
            return Err(failed(
                "the server said more than it was asked before TLS began".to_owned(),
            ));
        }
        let mut tls = StreamOwned::new(connection, plain.into_inner());
        while tls.conn.is_handshaking() {
            tls.conn
                .complete_io(&mut tls.sock)
                .map_err(|error| match is_late(&error) {
                    true => self.failed(&error),
                    false => failed(plain_error(&error)),
                })?;
        }
        self.stream = Stream::Tls(Box::new(BufReader::new(tls)));
        Ok(())
    }

    /// The greeting, TLS if it is begun within the conversation, and who we are.
    fn sign_in(&mut self, server: &Server<'_>) -> Result<(), Failure> {
        let is_positive = |reply: &Response| reply.is_positive();
        self.expect("its greeting", is_positive)?;
        let mut info = self.hello(server.hello)?;
        if server.tls == MailTls::Start {
            if !info.supports_feature(Extension::StartTls) {
                return Err(Failure::again(format!(
                    "{} does not offer STARTTLS",
                    self.name
                )));
            }
            self.say(&Starttls)?;
            self.expect("STARTTLS", is_positive)?;
            self.secure(server.host)?;
            info = self.hello(server.hello)?;
        }
        let Some((user, password)) = &server.login else {
            return Ok(());
        };
        let Some(mechanism) = info.get_auth_mechanism(DEFAULT_MECHANISMS) else {
            return Err(Failure::again(format!(
                "{} offers neither AUTH PLAIN nor AUTH LOGIN",
                self.name
            )));
        };
        let name = self.name.clone();
        let failed = |error: lettre::transport::smtp::Error| {
            Failure::again(format!("{name}: AUTH: {error}"))
        };
        let credentials = Credentials::new(user.clone(), password.clone());
        let mut auth = Auth::new(mechanism, credentials.clone(), None).map_err(failed)?;
        for _ in 0..CHALLENGES_MAX {
            self.say(&auth)?;
            let reply = self.reply()?;
            if reply.has_code(334) {
                auth = Auth::new_from_response(mechanism, credentials.clone(), &reply)
                    .map_err(failed)?;
                continue;
            }
            if reply.is_positive() {
                return Ok(());
            }
            // A server that repeats the password does not get it into the log.
            let words = self.answered("AUTH", &reply).replace(password, "***");
            return Err(Failure::again(words));
        }
        Err(Failure::again(format!(
            "{} asks for more and more at AUTH",
            self.name
        )))
    }

    fn hello(&mut self, name: &str) -> Result<ServerInfo, Failure> {
        self.say(&Ehlo::new(ClientId::Domain(name.to_owned())))?;
        let reply = self.expect("EHLO", |reply| reply.is_positive())?;
        ServerInfo::from_response(&reply)
            .map_err(|error| Failure::again(format!("{}: {error}", self.name)))
    }

    fn hand_over(&mut self, envelope: &Envelope, message: &[u8]) -> Result<(), Failure> {
        self.say(&Mail::new(envelope.from().cloned(), Vec::new()))?;
        self.accepted("the sender")?;
        for recipient in envelope.to() {
            let recipient: &Address = recipient;
            self.say(&Rcpt::new(recipient.clone(), Vec::new()))?;
            self.accepted(&format!("the recipient {recipient}"))?;
        }
        self.say(&Data)?;
        self.accepted("DATA")?;
        self.write(&stuffed(message))?;
        self.accepted("the message")?;
        // It has the message: how it says good-bye does not matter.
        let _ = self.say(&Quit);
        Ok(())
    }

    /// A reply about this very mail: what is refused for good is not tried again.
    fn accepted(&mut self, about: &str) -> Result<(), Failure> {
        let reply = self.reply()?;
        let code = reply.code().to_string();
        let words = || self.answered(about, &reply);
        match code.as_bytes().first() {
            Some(b'2' | b'3') => Ok(()),
            // Who we are, and TLS, can be mended in the configuration.
            Some(b'5') if !matches!(code.as_str(), "530" | "534" | "535" | "538") => {
                Err(Failure::refused(words()))
            }
            _ => Err(Failure::again(words())),
        }
    }

    fn expect(
        &mut self,
        about: &str,
        is_good: impl Fn(&Response) -> bool,
    ) -> Result<Response, Failure> {
        let reply = self.reply()?;
        match is_good(&reply) {
            true => Ok(reply),
            false => Err(Failure::again(self.answered(about, &reply))),
        }
    }

    fn answered(&self, about: &str, reply: &Response) -> String {
        let lines: Vec<&str> = reply.message().collect();
        let words = text::presentable(lines.join(" ").as_bytes(), WORDS_MAX);
        format!("{} answered {} {words} to {about}", self.name, reply.code())
    }

    fn say(&mut self, command: &impl ToString) -> Result<(), Failure> {
        self.write(command.to_string().as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.stream {
            Stream::Nothing => Err(io::ErrorKind::NotConnected.into()),
            Stream::Plain(stream) => stream.get_mut().write_all(bytes),
            Stream::Tls(stream) => stream
                .get_mut()
                .write_all(bytes)
                .and_then(|()| stream.get_mut().flush()),
        };
        written.map_err(|error| self.failed(&error))
    }

    fn reply(&mut self) -> Result<Response, Failure> {
        let mut all = String::new();
        for _ in 0..LINES_MAX {
            let mut line = Vec::new();
            let read = match &mut self.stream {
                Stream::Nothing => Err(io::ErrorKind::NotConnected.into()),
                Stream::Plain(stream) => stream
                    .by_ref()
                    .take(LINE_BYTES_MAX)
                    .read_until(b'\n', &mut line),
                Stream::Tls(stream) => stream
                    .by_ref()
                    .take(LINE_BYTES_MAX)
                    .read_until(b'\n', &mut line),
            };
            read.map_err(|error| self.failed(&error))?;
            if line.is_empty() {
                return Err(Failure::again(format!("{} hung up", self.name)));
            }
            let is_reply = line.len() >= 4
                && line[..3].iter().all(u8::is_ascii_digit)
                && matches!(line[3], b' ' | b'-' | b'\r' | b'\n')
                && line.ends_with(b"\n");
            if !is_reply {
                return Err(self.garbage(&line));
            }
            let is_last = line[3] != b'-';
            let text = String::from_utf8_lossy(&line);
            all.push_str(text.trim_end());
            all.push_str("\r\n");
            if is_last {
                return all.parse().map_err(|_| self.garbage(all.as_bytes()));
            }
        }
        Err(Failure::again(format!(
            "{} sent a reply of more than {LINES_MAX} lines",
            self.name
        )))
    }

    fn garbage(&self, bytes: &[u8]) -> Failure {
        Failure::again(format!(
            "{} does not speak SMTP: it sent `{}`",
            self.name,
            text::presentable(bytes, 80).trim()
        ))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::again(match is_late(error) {
            true => late(&self.name, self.time_max),
            false => format!("{}: {}", self.name, plain_error(error)),
        })
    }
}

fn late(name: &str, time_max: Duration) -> String {
    format!("{name}: not done within {} s", time_max.as_secs())
}

fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// The message as DATA wants it: a dot at the beginning of a line doubled, and one alone at the end.
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_that_begin_with_a_dot_have_one_more() {
        let stuffed =
            |text: &str| String::from_utf8(super::stuffed(text.as_bytes())).expect("text");
        assert_eq!(stuffed("a\r\n.b\r\n..\r\n"), "a\r\n..b\r\n...\r\n.\r\n");
        assert_eq!(stuffed("a"), "a\r\n.\r\n");
    }
}
