//! Connections and their bounds. One thread reads and writes for all of them, a few others answer.
//!
//! A request is handed to an answering thread only when all of it has come, so a slow client costs a place in a table and
//! never a thread; a request that does not come in time is answered with 408. When the table is full the connection that
//! has been waiting for the longest goes, so a crowd of silent ones cannot keep anybody out. Knows no page.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};

use super::http::{parse, Parsed, Request, Response, Status, HEAD_BYTES_MAX};
use crate::sys::{heartbeat, thread};

/// Threads that answer.
const ANSWERERS: usize = 3;
/// Requests that wait for one of them; more are answered with 503.
const WAITING_MAX: usize = 32;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// Requests over one connection.
const REQUESTS_MAX: u32 = 1_000;
/// A request must have come within this time.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// A connection may be unused for this long between two requests.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// An answer must be found within this time.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// An answer must be taken within this time.
const TAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// After an error: what a client still sends is thrown away for this long, so that it reads the answer.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// Connections accepted in one round.
const ACCEPTS_PER_ROUND: usize = 64;
/// After a failure to accept or to bind.
const PAUSE: Duration = Duration::from_millis(200);
const BIND_AGAIN: Duration = Duration::from_secs(10);

/// An address that is listened on.
pub struct Site {
    /// As handed to the handler, and for the log.
    pub name: &'static str,
    /// For the log: where people look.
    pub path: &'static str,
    pub place: Place,
}

pub enum Place {
    /// `HOST:PORT`; port 0 is any.
    Address(String),
    /// Made by somebody else (systemd), and listening already.
    Socket(TcpListener),
}

/// Finds the answer for a request that came to the site of this name. Called by several threads.
pub type Handler = Arc<dyn Fn(&str, &Request) -> Response + Send + Sync>;

/// What the server has done.
#[derive(Default, Debug)]
pub struct Counters {
    answers: [AtomicU64; Status::ALL.len()],
    connections: AtomicU64,
    evicted: AtomicU64,
}

impl Counters {
    fn answered(&self, status: Status) {
        if let Some(at) = Status::ALL.iter().position(|known| *known == status) {
            self.answers[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Connections now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections closed before their time to make room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Answers by status.
    pub fn answers(&self) -> impl Iterator<Item = (Status, u64)> + '_ {
        let counts = self
            .answers
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        Status::ALL.into_iter().zip(counts)
    }
}

/// The threads of a running server.
pub struct Server {
    wake: Arc<UnixStream>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and answers until [`Server::end`]. An address that cannot be had is no reason not to start: it is tried
    /// again until it can.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        sites: Vec<Site>,
        handler: Handler,
        counters: Arc<Counters>,
    ) -> io::Result<Server> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let wake = Arc::new(wake);
        let ending = Arc::new(AtomicBool::new(false));
        let (jobs, work) = bounded(WAITING_MAX);
        // At most one answer for each connection.
        let (answer, answers) = unbounded();
        let mut threads = Vec::new();
        for n in 1..=ANSWERERS {
            let (work, answer) = (work.clone(), answer.clone());
            let (handler, wake) = (handler.clone(), wake.clone());
            threads.push(thread::spawn(format!("http-{n}"), move || {
                answer_all(&work, &answer, &handler, &wake)
            })?);
        }
        let mut table = Table {
            sites: sites.into_iter().map(Listening::new).collect(),
            woken,
            jobs,
            answers,
            counters,
            connections: Vec::new(),
            last_id: 0,
        };
        table.listen();
        let end = ending.clone();
        threads.push(thread::spawn("http", move || table.serve(&end))?);
        Ok(Server {
            wake,
            ending,
            threads,
        })
    }

    /// Closes everything.
    pub fn end(self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = (&*self.wake).write(&[1]);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Job {
    connection: u64,
    site: &'static str,
    request: Request,
}

struct Answer {
    connection: u64,
    response: Response,
}

/// The body of an answering thread.
fn answer_all(
    work: &Receiver<Job>,
    answers: &Sender<Answer>,
    handler: &Handler,
    wake: &UnixStream,
) {
    loop {
        heartbeat::about(None);
        heartbeat::idle("waiting for requests");
        let Ok(job) = work.recv() else { return };
        heartbeat::busy("answering");
        heartbeat::about(Some(job.request.path.as_str().into()));
        let answer = || handler(job.site, &job.request);
        let response = catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
            Response::error(
                Status::InternalError,
                "BUG: no answer; the log of hydrad says where",
            )
        });
        let connection = job.connection;
        if answers
            .send(Answer {
                connection,
                response,
            })
            .is_err()
        {
            return;
        }
        // A full pipe wakes as well.
        let _ = (&*wake).write(&[1]);
    }
}

/// A site and its socket, once it has one.
struct Listening {
    site: Site,
    socket: Option<TcpListener>,
    /// Not used before then.
    not_before: Instant,
    told: bool,
}

impl Listening {
    fn new(site: Site) -> Listening {
        Listening {
            site,
            socket: None,
            not_before: Instant::now(),
            told: false,
        }
    }

    fn listen(&mut self, now: Instant) {
        if self.socket.is_some() || now < self.not_before {
            return;
        }
        let (socket, place) = match &self.site.place {
            Place::Address(address) => (TcpListener::bind(address), address.as_str()),
            Place::Socket(socket) => (socket.try_clone(), "the socket given by systemd"),
        };
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            Ok(socket) => {
                let address = socket.local_addr();
                let address = address.map_or_else(|_| place.to_owned(), |a| a.to_string());
                log::info!("serving http://{address}{}", self.site.path);
                self.socket = Some(socket);
            }
            Err(error) => {
                if !self.told {
                    log::error!(
                        "cannot serve {} on {place}: {}; trying again until it works",
                        self.site.path,
                        crate::sys::child::plain_error(&error)
                    );
                    self.told = true;
                }
                self.not_before = now + BIND_AGAIN;
            }
        }
    }
}

enum State {
    /// Waits for a request; `input` has what has come of it.
    Reading,
    /// An answer is being found.
    Working,
    Writing,
    /// What still comes is thrown away.
    Lingering,
}

struct Connection {
    id: u64,
    site: &'static str,
    stream: TcpStream,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    is_head: bool,
    keep_alive: bool,
    served: u32,
    deadline: Instant,
    is_over: bool,
}

struct Table {
    sites: Vec<Listening>,
    woken: UnixStream,
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    counters: Arc<Counters>,
    connections: Vec<Connection>,
    last_id: u64,
}

impl Table {
    fn serve(mut self, ending: &AtomicBool) {
        while !ending.load(Ordering::SeqCst) {
            heartbeat::idle("waiting for connections");
            let ready = self.wait();
            heartbeat::busy("reading and writing");
            self.listen();
            drain(&self.woken);
            while let Ok(answer) = self.answers.try_recv() {
                self.take_answer(answer);
            }
            for connection in &mut self.connections {
                if ready.contains(&connection.stream.as_raw_fd()) {
                    connection.go_on(&self.jobs, &self.counters);
                }
            }
            for at in 0..self.sites.len() {
                self.accept(at);
            }
            let now = Instant::now();
            for connection in &mut self.connections {
                connection.check(now, &self.counters);
            }
            self.connections.retain(|connection| !connection.is_over);
            let count = self.connections.len() as u64;
            self.counters.connections.store(count, Ordering::Relaxed);
        }
    }

    fn listen(&mut self) {
        let now = Instant::now();
        for site in &mut self.sites {
            site.listen(now);
        }
    }

    /// Waits until something can be done; the connections that can go on.
    fn wait(&self) -> Vec<i32> {
        let now = Instant::now();
        let mut polled = vec![pollfd(self.woken.as_raw_fd(), libc::POLLIN)];
        let mut until = now + Duration::from_secs(60);
        for site in &self.sites {
            match &site.socket {
                Some(socket) if now >= site.not_before => {
                    polled.push(pollfd(socket.as_raw_fd(), libc::POLLIN));
                }
                _ => until = until.min(site.not_before),
            }
        }
        for connection in &self.connections {
            until = until.min(connection.deadline);
            let events = match connection.state {
                State::Reading | State::Lingering => libc::POLLIN,
                State::Writing => libc::POLLOUT,
                State::Working => continue,
            };
            polled.push(pollfd(connection.stream.as_raw_fd(), events));
        }
        let left = until.saturating_duration_since(now);
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the pointer and length describe `polled`.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
        let is_ready = |polled: &&libc::pollfd| polled.revents != 0;
        polled.iter().filter(is_ready).map(|p| p.fd).collect()
    }

    fn accept(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let name = site.site.name;
        let now = Instant::now();
        let Some(socket) = site.socket.as_ref().filter(|_| now >= site.not_before) else {
            return;
        };
        let mut accepted: Vec<(TcpStream, SocketAddr)> = Vec::new();
        for _ in 0..ACCEPTS_PER_ROUND {
            match socket.accept() {
                Ok(connection) => accepted.push(connection),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // A client that has gone already, or no descriptors left: not again at once.
                    log::debug!("cannot accept a connection: {error}");
                    site.not_before = now + PAUSE;
                    break;
                }
            }
        }
        for (stream, _) in accepted {
            if self.connections.len() >= CONNECTIONS_MAX && !self.make_room() {
                continue;
            }
            let prepared = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true));
            if prepared.is_err() {
                continue;
            }
            self.last_id += 1;
            let mut connection = Connection {
                id: self.last_id,
                site: name,
                stream,
                state: State::Reading,
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                is_head: false,
                keep_alive: true,
                served: 0,
                deadline: now + REQUEST_TIME_MAX,
                is_over: false,
            };
            // Most clients have sent their request by now.
            connection.go_on(&self.jobs, &self.counters);
            self.connections.push(connection);
        }
    }

    /// Closes the connection whose request has been waited for the longest; an unused one first.
    fn make_room(&mut self) -> bool {
        let waiting =
            self.connections.iter().enumerate().filter(|(_, c)| {
                matches!(c.state, State::Reading | State::Lingering) && !c.is_over
            });
        let longest = waiting.min_by_key(|(_, c)| {
            let is_unused = c.served > 0 && c.input.is_empty();
            (!is_unused, c.deadline)
        });
        let Some((at, _)) = longest else { return false };
        self.connections.swap_remove(at);
        self.counters.evicted.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn take_answer(&mut self, answer: Answer) {
        let mut all = self.connections.iter_mut();
        // It may have been closed meanwhile.
        if let Some(connection) = all.find(|connection| connection.id == answer.connection) {
            connection.answer(&answer.response, &self.counters);
            connection.go_on(&self.jobs, &self.counters);
        }
    }
}

impl Connection {
    /// Does what can be done without waiting.
    fn go_on(&mut self, jobs: &Sender<Job>, counters: &Counters) {
        while !self.is_over {
            let moved = match self.state {
                State::Reading => self.read(jobs, counters),
                State::Working => false,
                State::Writing => self.write(),
                State::Lingering => self.throw_away(),
            };
            if !moved {
                return;
            }
        }
    }

    /// True if there is something else to do now.
    fn read(&mut self, jobs: &Sender<Job>, counters: &Counters) -> bool {
        if !self.input.is_empty() && self.take_request(jobs, counters) {
            return true;
        }
        let mut chunk = [0u8; 4 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.is_over = true,
            Ok(n) => {
                if self.input.is_empty() && self.served > 0 {
                    self.deadline = Instant::now() + REQUEST_TIME_MAX;
                }
                self.input.extend_from_slice(&chunk[..n]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.is_over = true,
        }
        false
    }

    /// True if there was a whole request, good or bad.
    fn take_request(&mut self, jobs: &Sender<Job>, counters: &Counters) -> bool {
        debug_assert!(self.input.len() <= HEAD_BYTES_MAX + (8 << 10));
        match parse(&self.input) {
            Parsed::Partial => return false,
            Parsed::Bad(response) => {
                self.keep_alive = false;
                self.is_head = false;
                self.answer(&response, counters);
            }
            Parsed::Request(request, length) => {
                self.input.drain(..length);
                self.served += 1;
                self.is_head = request.is_head;
                self.keep_alive = request.keep_alive && self.served < REQUESTS_MAX;
                let job = Job {
                    connection: self.id,
                    site: self.site,
                    request,
                };
                if jobs.try_send(job).is_ok() {
                    self.state = State::Working;
                    self.deadline = Instant::now() + ANSWER_TIME_MAX;
                } else {
                    let message = "too many requests wait for an answer; try again";
                    self.answer(&Response::error(Status::Unavailable, message), counters);
                }
            }
        }
        true
    }

    fn answer(&mut self, response: &Response, counters: &Counters) {
        counters.answered(response.status);
        self.output = response.bytes(self.is_head, self.keep_alive);
        self.sent = 0;
        self.state = State::Writing;
        self.deadline = Instant::now() + TAKE_TIME_MAX;
    }

    fn write(&mut self) -> bool {
        match self.stream.write(&self.output[self.sent..]) {
            Ok(n) => self.sent += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                self.is_over = true;
                return false;
            }
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            let now = Instant::now();
            if self.keep_alive {
                self.state = State::Reading;
                self.deadline = now + IDLE_MAX;
            } else {
                // Closing with unread bytes would take the answer away from the client.
                self.is_over = self.stream.shutdown(Shutdown::Write).is_err();
                self.state = State::Lingering;
                self.deadline = now + LINGER_MAX;
            }
        }
        true
    }

    fn throw_away(&mut self) -> bool {
        let mut chunk = [0u8; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(n) if n > 0 => Instant::now() < self.deadline,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            _ => {
                self.is_over = true;
                false
            }
        }
    }

    /// What has taken too long.
    fn check(&mut self, now: Instant, counters: &Counters) {
        if now < self.deadline {
            return;
        }
        match self.state {
            State::Reading if self.served == 0 || !self.input.is_empty() => {
                self.keep_alive = false;
                self.is_head = false;
                let message = "the request did not come in time";
                self.answer(&Response::error(Status::RequestTimeout, message), counters);
                if !self.write() && self.sent < self.output.len() {
                    self.is_over = true;
                }
            }
            _ => self.is_over = true,
        }
    }
}

fn drain(woken: &UnixStream) {
    let mut chunk = [0u8; 64];
    while matches!((&*woken).read(&mut chunk), Ok(n) if n > 0) {}
}

fn pollfd(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}
