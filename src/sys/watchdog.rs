//! The watchdog: names the thread that stands still, once and then ever more rarely, and feeds systemd's own watchdog.
//!
//! Knows what every thread is allowed ([`heartbeat::Beat::overdue`]); does not know what any of them does. Systemd is fed
//! as long as this thread and those named as essential live; nothing else, no database, store or machine being away, can
//! let it expire.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::heartbeat::{self, Beat};
use super::systemd;

/// How often the threads are looked at, at most and at least.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(50);
/// A thread that stands still is named again after twice its age, but not later than this.
const REPEAT_MAX: Duration = Duration::from_secs(3600);
/// How often systemd is told how things are.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// With systemd's watchdog off: how long an essential thread may stand still before it does not count as alive.
const ALIVE_MAX: Duration = Duration::from_secs(30);

/// What the watchdog is given.
pub struct Watched<'a> {
    /// How long a thread may stand still in what has no deadline of its own. `None`: nobody is named.
    pub patience: Option<Duration>,
    /// Threads without which the service is dead.
    pub essential: &'a [&'a str],
    /// One line on how things are; may take a moment.
    pub status: &'a dyn Fn() -> String,
}

/// The body of the thread: until `ended` is closed.
pub fn watch(watched: &Watched<'_>, ended: &Receiver<()>) {
    let interval = systemd::watchdog_interval();
    let every = watched
        .patience
        .map_or(LOOK_EVERY_MAX, |patience| patience / 4)
        .min(interval.unwrap_or(LOOK_EVERY_MAX))
        .clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
    let alive_max = interval.unwrap_or(ALIVE_MAX);
    let mut judge = Judge::default();
    let mut told: Option<(Instant, String)> = None;
    loop {
        heartbeat::idle("waiting for the next look");
        match ended.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        heartbeat::busy("looking at all threads");
        let now = Instant::now();
        let beats = heartbeat::all();
        if let Some(patience) = watched.patience {
            for finding in judge.look(now, patience, &beats) {
                finding.say();
            }
        }
        let dead = watched
            .essential
            .iter()
            .find(|name| !is_alive(name, &beats, now, alive_max));
        match dead {
            Some(name) => log::error!(
                "the thread '{name}' does not work any more; systemd is not told that we live"
            ),
            None => systemd::notify("WATCHDOG=1"),
        }
        let is_due =
            |(at, _): &(Instant, String)| now.saturating_duration_since(*at) >= STATUS_EVERY;
        if told.as_ref().is_none_or(is_due) || judge.changed {
            let text = judge.worst(now).unwrap_or_else(|| (watched.status)());
            if told.as_ref().is_none_or(|(_, last)| *last != text) {
                systemd::notify(&format!("STATUS={text}"));
            }
            told = Some((now, text));
        }
    }
}

fn is_alive(name: &str, beats: &[Beat], now: Instant, max: Duration) -> bool {
    beats
        .iter()
        .any(|beat| beat.thread == name && beat.overdue(now, max).is_none())
}

/// The threads that stand still.
pub fn stuck(now: Instant, patience: Duration, beats: &[Beat]) -> impl Iterator<Item = &Beat> {
    beats
        .iter()
        .filter(move |beat| beat.overdue(now, patience).is_some())
}

/// What is worth a line in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Finding {
    Stuck { what: String, age: Duration },
    Moves { thread: String, stood: Duration },
}

impl Finding {
    fn say(&self) {
        match self {
            Finding::Stuck { what, age } => {
                log::error!("{what} for {} s", age.as_secs());
            }
            Finding::Moves { thread, stood } => log::info!(
                "the thread '{thread}' goes on after it stood still for {} s",
                stood.as_secs()
            ),
        }
    }
}

/// Remembers which threads were named.
#[derive(Default)]
struct Judge {
    named: HashMap<String, Named>,
    /// The last look found somebody new or somebody back.
    changed: bool,
}

struct Named {
    last_sign: Instant,
    what: String,
    again_at_age: Duration,
}

impl Judge {
    fn look(&mut self, now: Instant, patience: Duration, beats: &[Beat]) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.named.retain(|thread, named| {
            let stands = beats
                .iter()
                .any(|beat| beat.thread == *thread && beat.last_sign == named.last_sign);
            if !stands {
                findings.push(Finding::Moves {
                    thread: thread.clone(),
                    stood: now.saturating_duration_since(named.last_sign),
                });
            }
            stands
        });
        for beat in stuck(now, patience, beats) {
            let age = now.saturating_duration_since(beat.last_sign);
            let again_at_age = (age * 2).min(age + REPEAT_MAX);
            let named = self
                .named
                .entry(beat.thread.clone())
                .or_insert_with(|| Named {
                    last_sign: beat.last_sign,
                    what: stands_still(beat),
                    again_at_age: Duration::ZERO,
                });
            if age >= named.again_at_age {
                named.again_at_age = again_at_age;
                let what = named.what.clone();
                findings.push(Finding::Stuck { what, age });
            }
        }
        self.changed = !findings.is_empty();
        findings
    }

    /// The thread that has stood still for the longest time.
    fn worst(&self, now: Instant) -> Option<String> {
        let worst = self.named.values().min_by_key(|named| named.last_sign)?;
        let age = now.saturating_duration_since(worst.last_sign).as_secs();
        Some(format!("{} for {age} s", worst.what))
    }
}

/// Who stands still, and doing what.
pub fn stands_still(beat: &Beat) -> String {
    let about = beat
        .about
        .as_ref()
        .map_or(String::new(), |about| format!(" ({about})"));
    format!(
        "the thread '{}' stands still while {}{about}",
        beat.thread, beat.phase
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::heartbeat::Patience;

    /// Looks at these ages (seconds) and tells what was found, one line for each finding.
    fn check(ages: &[(u64, u64)]) -> Vec<String> {
        let began = Instant::now();
        let mut judge = Judge::default();
        let mut lines = Vec::new();
        for (now, last_sign) in ages {
            let beat = Beat {
                thread: "inspect-1".into(),
                phase: "reading a derivation",
                about: Some("x.drv".into()),
                patience: Patience::Watchdog,
                since: began,
                last_sign: began + Duration::from_secs(*last_sign),
            };
            let at = began + Duration::from_secs(*now);
            for finding in judge.look(at, Duration::from_secs(60), &[beat]) {
                lines.push(match finding {
                    Finding::Stuck { what, age } => {
                        format!("{now}: {what} for {} s", age.as_secs())
                    }
                    Finding::Moves { stood, .. } => {
                        format!("{now}: moves after {} s", stood.as_secs())
                    }
                });
            }
        }
        lines
    }

    #[test]
    fn a_thread_is_named_once_then_ever_more_rarely_and_when_it_goes_on() {
        let stuck = |at: u64| {
            format!("{at}: the thread 'inspect-1' stands still while reading a derivation (x.drv) for {at} s")
        };
        let ages = [60, 61, 62, 121, 122, 200, 244].map(|now| (now, 0));
        assert_eq!(check(&ages), [stuck(61), stuck(122), stuck(244)]);
        assert_eq!(
            check(&[(61, 0), (62, 62)]),
            [stuck(61), "62: moves after 62 s".into()]
        );
        let days = [(10_000, 0), (13_599, 0), (13_600, 0)];
        assert_eq!(check(&days), [stuck(10_000), stuck(13_600)]);
    }

    #[test]
    fn only_a_living_essential_thread_counts() {
        let now = Instant::now();
        let beat = |patience| Beat {
            thread: "plan".into(),
            phase: "p",
            about: None,
            patience,
            since: now,
            last_sign: now,
        };
        let later = now + Duration::from_secs(31);
        let alive = |beats: &[Beat]| is_alive("plan", beats, later, Duration::from_secs(30));
        assert!(alive(&[beat(Patience::Unlimited)]));
        assert!(!alive(&[beat(Patience::Watchdog)]));
        assert!(!alive(&[]));
    }
}
