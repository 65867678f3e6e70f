//! What every thread of ours is doing, since when, and whether that is longer than it may take.
//!
//! Each thread started by [`super::thread::spawn`] has a cell: what it does ([`enter`], [`about`]), since when, when it last
//! showed life, and how long it may go without ([`Patience`]). Only the thread writes its cell and only for an instant, so
//! nobody ever waits for it. Whoever wants to know reads all cells ([`all`]). Like the log, this belongs to the process, not
//! to a service.
//!
//! Knows no thread's work and judges none: what is too long is the watchdog's to say.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::lock::lock;

/// How long a thread may go without a sign of life in what it is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// For ever: it waits for work, or for somebody else whose wait is watched.
    Unlimited,
    /// As long as the watchdog allows: it does something that should end soon.
    Watchdog,
    /// It waits under a deadline of its own, and the watchdog allows as much again beyond that.
    Deadline(Duration),
}

#[derive(Debug)]
struct Cell {
    name: String,
    now: Mutex<Doing>,
}

#[derive(Clone, Debug)]
struct Doing {
    phase: &'static str,
    about: Option<Arc<str>>,
    patience: Patience,
    since: Instant,
    last_sign: Instant,
}

/// One thread, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Beat {
    pub thread: String,
    pub phase: &'static str,
    /// What its work is about, for instance a derivation.
    pub about: Option<Arc<str>>,
    pub patience: Patience,
    /// Since when it is in this phase.
    pub since: Instant,
    /// When it entered the phase or made progress in it.
    pub last_sign: Instant,
}

impl Beat {
    /// How far it is beyond what it is allowed; `None` while all is well.
    pub fn overdue(&self, now: Instant, watchdog: Duration) -> Option<Duration> {
        let allowed = match self.patience {
            Patience::Unlimited => return None,
            Patience::Watchdog => watchdog,
            Patience::Deadline(deadline) => deadline.saturating_add(watchdog),
        };
        now.saturating_duration_since(self.last_sign)
            .checked_sub(allowed)
            .filter(|beyond| !beyond.is_zero())
    }
}

static CELLS: Mutex<Vec<Arc<Cell>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Option<Registered>> = const { RefCell::new(None) };
}

/// Takes the thread off the list when it ends, also by a panic.
struct Registered(Arc<Cell>);

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&CELLS).retain(|cell| !Arc::ptr_eq(cell, &self.0));
    }
}

/// Gives the calling thread a cell under this name, for as long as it lives. Until it says what it does nobody waits for it.
pub fn register(name: &str) {
    let now = Instant::now();
    let cell = Arc::new(Cell {
        name: name.to_owned(),
        now: Mutex::new(Doing {
            phase: "running",
            about: None,
            patience: Patience::Unlimited,
            since: now,
            last_sign: now,
        }),
    });
    lock(&CELLS).push(cell.clone());
    OWN.with(|own| *own.borrow_mut() = Some(Registered(cell)));
}

/// From now on the calling thread does this. A thread without a cell is none of ours.
pub fn enter(phase: &'static str, patience: Patience) {
    change(|doing| {
        let now = Instant::now();
        (doing.phase, doing.patience) = (phase, patience);
        (doing.since, doing.last_sign) = (now, now);
    });
}

/// The calling thread waits for work, for as long as there is none.
pub fn idle(phase: &'static str) {
    enter(phase, Patience::Unlimited);
}

/// The calling thread does something that should not take long.
pub fn busy(phase: &'static str) {
    enter(phase, Patience::Watchdog);
}

/// What the work of the calling thread is about from now on, whatever the phase.
pub fn about(what: Option<Arc<str>>) {
    change(|doing| doing.about = what);
}

/// Something moved: the wait begins anew, the phase stays.
pub fn progress() {
    change(|doing| doing.last_sign = Instant::now());
}

/// Does something else in the middle of a phase, which goes on afterwards with a new sign of life.
pub fn during<T>(phase: &'static str, patience: Patience, work: impl FnOnce() -> T) -> T {
    let mut before = None;
    change(|doing| before = Some(doing.clone()));
    enter(phase, patience);
    let result = work();
    if let Some(before) = before {
        change(|doing| {
            *doing = before;
            doing.last_sign = Instant::now();
        });
    }
    result
}

/// Every thread with a cell, in the order in which they were started.
pub fn all() -> Vec<Beat> {
    let cells: Vec<Arc<Cell>> = lock(&CELLS).clone();
    let look = |cell: &Arc<Cell>| {
        let doing = lock(&cell.now).clone();
        Beat {
            thread: cell.name.clone(),
            phase: doing.phase,
            about: doing.about,
            patience: doing.patience,
            since: doing.since,
            last_sign: doing.last_sign,
        }
    };
    cells.iter().map(look).collect()
}

/// One line for each thread: name, phase, for how long, how long without a sign of life.
pub fn table() -> Vec<String> {
    let now = Instant::now();
    let secs = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
    let line = |beat: Beat| {
        let about = beat
            .about
            .map_or(String::new(), |about| format!(" ({about})"));
        format!(
            "thread '{}': {}{about} for {:.1} s, last sign of life {:.1} s ago",
            beat.thread,
            beat.phase,
            secs(beat.since),
            secs(beat.last_sign)
        )
    };
    all().into_iter().map(line).collect()
}

fn change(how: impl FnOnce(&mut Doing)) {
    // A thread that is being torn down has no cell any more.
    let _ = OWN.try_with(|own| {
        if let Some(Registered(cell)) = &*own.borrow() {
            how(&mut lock(&cell.now));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<Beat> {
        all().into_iter().find(|beat| beat.thread == name)
    }

    #[test]
    fn a_thread_is_seen_while_it_lives_and_judged_by_its_own_patience() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (said, heard) = std::sync::mpsc::channel();
        let thread = crate::sys::thread::spawn("beat-test", move || {
            enter("digging", Patience::Deadline(Duration::from_secs(5)));
            about(Some("a hole".into()));
            during("resting", Patience::Unlimited, || {
                said.send(of("beat-test").map(|beat| beat.phase))
                    .expect("heard");
            });
            said.send(None).expect("heard");
            wait.recv().expect("told to go");
            panic!("the end of a thread that nobody planned");
        })
        .expect("a thread");
        assert_eq!(heard.recv(), Ok(Some("resting")));
        assert_eq!(heard.recv(), Ok(None));
        let beat = of("beat-test").expect("it lives");
        assert_eq!(
            (beat.phase, beat.about.as_deref()),
            ("digging", Some("a hole"))
        );
        let minute = Duration::from_secs(60);
        let at = |secs| beat.last_sign + Duration::from_secs(secs);
        assert_eq!(beat.overdue(at(65), minute), None);
        assert_eq!(beat.overdue(at(66), minute), Some(Duration::from_secs(1)));
        go.send(()).expect("it waits");
        thread.join().expect_err("it panicked");
        assert!(of("beat-test").is_none());
    }

    #[test]
    fn who_waits_for_work_may_wait_for_ever() {
        let now = Instant::now();
        let beat = |patience| Beat {
            thread: "t".into(),
            phase: "p",
            about: None,
            patience,
            since: now,
            last_sign: now,
        };
        let year = now + Duration::from_secs(365 * 86_400);
        let second = Duration::from_secs(1);
        assert_eq!(beat(Patience::Unlimited).overdue(year, second), None);
        assert!(beat(Patience::Watchdog).overdue(year, second).is_some());
    }
}
