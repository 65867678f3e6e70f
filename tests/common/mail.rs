//! A real mail server on the loopback interface (aiosmtpd, from the Python environment that `make deps` makes), and sockets that are
//! none.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::process::{eventually, Running};
use super::s3::venv;
use super::{Certificate, RunAs, TestDir};

pub struct MailServer {
    running: Running,
    address: SocketAddr,
    _dir: TestDir,
}

/// TLS that a mail server has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    Start,
    Always,
}

impl MailServer {
    /// `auth`: `USER:PASSWORD`, wanted before any mail.
    pub fn start(tls: Option<(MailTls, &Certificate)>, auth: Option<&str>) -> MailServer {
        let dir = TestDir::new(RunAs::Me);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/mail-server.py");
        let mut command = Command::new(venv("python"));
        command.args(["-W", "ignore"]).arg(script);
        if let Some((kind, own)) = tls {
            command.arg("--cert").arg(&own.certificate);
            command.arg("--key").arg(&own.key);
            if kind == MailTls::Always {
                command.arg("--tls");
            }
        }
        if let Some(auth) = auth {
            command.args(["--auth", auth]);
        }
        let mut running = Running::start(command, "mail", &dir.join("mail.log"), libc::SIGTERM);
        let line = running.wait_log("listening on ");
        let address = line
            .rsplit_once(' ')
            .and_then(|(_, address)| address.trim().parse().ok())
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        MailServer {
            running,
            address,
            _dir: dir,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The mails it took: `sender`, `recipients`, `tls`, `user`, `headers`, `body`.
    pub fn mails(&self) -> Vec<Value> {
        let log = self.running.log();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    pub fn wait(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} mails"), || {
            let mails = self.mails();
            (mails.len() >= count).then_some(mails)
        })
    }
}

/// Listens, and says what is no protocol.
pub struct Rogue {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

/// What it does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Roguery {
    /// Nothing.
    Silence,
    /// These bytes, then the end.
    Says(&'static [u8]),
    /// These bytes, and then one of `.` every 50 ms, for ever.
    Drips(&'static [u8]),
    /// Closes at once.
    HangsUp,
}

impl Rogue {
    pub fn start(roguery: Roguery) -> Rogue {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let (ending, taken) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (ended, count) = (ending.clone(), taken.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let ended = ended.clone();
                std::thread::spawn(move || serve(stream, roguery, &ended));
            }
        });
        Rogue {
            address,
            ending,
            taken,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections it had.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, roguery: Roguery, ended: &AtomicBool) {
    let (first, goes_on) = match roguery {
        Roguery::Silence => (&b""[..], None),
        Roguery::Says(bytes) => (bytes, None),
        Roguery::Drips(bytes) => (bytes, Some(b".")),
        Roguery::HangsUp => return,
    };
    if stream.write_all(first).is_err() {
        return;
    }
    while !ended.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        if goes_on.is_some_and(|byte| stream.write_all(byte).is_err()) {
            return;
        }
        if matches!(roguery, Roguery::Says(_)) {
            return;
        }
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}
