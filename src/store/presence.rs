//! What is remembered of the paths of a binary cache, so that it is not asked again and again.
//!
//! Knows no store: an answer is kept for a lifetime, a good one and a bad one for one of their own, and can be
//! forgotten. Bounded: what was not asked for during the last turn-over is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::base::lock::lock;

use super::local::PathMeta;

/// Answers in each of the two generations.
const GENERATION: usize = 50_000;

/// How long answers are believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// "It is there."
    pub positive: Duration,
    /// "It is not there."
    pub negative: Duration,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Known {
    There(Arc<PathMeta>),
    Absent,
    /// It is there, but cannot be used: something of its closure is not. Believed until it is written anew.
    Broken,
}

pub struct Presence {
    lifetimes: Lifetimes,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Arc<str>, (Instant, Known)>,
    old: HashMap<Arc<str>, (Instant, Known)>,
}

impl Presence {
    pub fn new(lifetimes: Lifetimes) -> Presence {
        Presence {
            lifetimes,
            generations: Mutex::default(),
        }
    }

    /// The answer, if it may still be believed.
    pub fn get(&self, path: &str) -> Option<Known> {
        let mut generations = self.lock();
        let (at, known) = match generations.young.get(path) {
            Some(entry) => entry.clone(),
            None => {
                let (path, entry) = generations.old.remove_entry(path)?;
                generations.insert(path, entry.clone());
                entry
            }
        };
        let lifetime = match known {
            Known::There(_) => self.lifetimes.positive,
            Known::Absent => self.lifetimes.negative,
            Known::Broken => Duration::MAX,
        };
        (at.elapsed() < lifetime).then_some(known)
    }

    pub fn put(&self, path: &str, known: Known) {
        self.lock().insert(path.into(), (Instant::now(), known));
    }

    /// Whether there was anything to forget.
    pub fn forget(&self, path: &str) -> bool {
        let mut generations = self.lock();
        let young = generations.young.remove(path).is_some();
        generations.old.remove(path).is_some() || young
    }

    /// How many answers are forgotten.
    pub fn forget_all(&self) -> usize {
        let mut generations = self.lock();
        let before = generations.len();
        *generations = Generations::default();
        before
    }

    /// Answers remembered, for the report.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        lock(&self.generations)
    }
}

impl Generations {
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn insert(&mut self, path: Arc<str>, entry: (Instant, Known)) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(path, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(path: &str) -> Known {
        Known::There(Arc::new(PathMeta {
            path: path.into(),
            references: Box::default(),
            nar_size: 1,
        }))
    }

    #[test]
    fn answers_end_with_their_lifetime_or_when_forgotten() {
        let presence = Presence::new(Lifetimes {
            positive: Duration::from_secs(3600),
            negative: Duration::ZERO,
        });
        presence.put("a", meta("a"));
        presence.put("b", Known::Absent);
        presence.put("c", Known::Broken);
        assert_eq!(presence.get("a"), Some(meta("a")));
        assert_eq!(presence.get("b"), None, "not believed for any time");
        assert_eq!(presence.get("c"), Some(Known::Broken));
        presence.forget("a");
        assert_eq!(presence.get("a"), None);
        presence.forget_all();
        assert_eq!((presence.get("c"), presence.is_empty()), (None, true));
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let presence = Presence::new(Lifetimes {
            positive: Duration::MAX,
            negative: Duration::MAX,
        });
        presence.put("kept", Known::Absent);
        presence.put("dropped", Known::Absent);
        for n in 0..3 * GENERATION {
            if n % (GENERATION / 2) == 0 {
                assert_eq!(presence.get("kept"), Some(Known::Absent));
            }
            presence.put(&n.to_string(), Known::Absent);
        }
        assert_eq!(presence.get("dropped"), None);
        assert!(presence.len() <= 2 * GENERATION);
    }
}
