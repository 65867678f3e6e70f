//! An answer that many ask for and that is fetched once for all of them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::lock::lock;

/// The last answer. While one thread fetches a new one the others wait for it instead of asking themselves.
#[derive(Debug)]
pub struct Shared<T> {
    state: Mutex<State<T>>,
    fetched: Condvar,
}

#[derive(Debug)]
struct State<T> {
    answer: Option<(Instant, Arc<T>)>,
    is_fetching: bool,
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        let state = State {
            answer: None,
            is_fetching: false,
        };
        Shared {
            state: Mutex::new(state),
            fetched: Condvar::new(),
        }
    }
}

/// Lets others fetch, also after a panic.
struct Fetching<'a, T>(&'a Shared<T>);

impl<T> Drop for Fetching<'_, T> {
    fn drop(&mut self) {
        self.0.lock().is_fetching = false;
        self.0.fetched.notify_all();
    }
}

impl<T> Shared<T> {
    /// The answer, at most `age_max` old when this was called; fetched if there is none. Waits for `patience` at most,
    /// beyond what `fetch` itself takes. `None`: it could not be fetched, by us or by whom we waited for.
    pub fn get(
        &self,
        age_max: Duration,
        patience: Duration,
        fetch: impl FnOnce() -> Option<T>,
    ) -> Option<Arc<T>> {
        let asked = Instant::now();
        let until = asked + patience;
        let mut state = self.lock();
        loop {
            if let Some((at, answer)) = &state.answer {
                if asked.saturating_duration_since(*at) <= age_max {
                    return Some(answer.clone());
                }
            }
            if !state.is_fetching {
                break;
            }
            let left = until.checked_duration_since(Instant::now())?;
            state = self
                .fetched
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.is_fetching = true;
        drop(state);
        let fetching = Fetching(self);
        // An answer is as old as its question.
        let at = Instant::now();
        let answer = Arc::new(fetch()?);
        self.lock().answer = Some((at, answer.clone()));
        drop(fetching);
        Some(answer)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    #[test]
    fn a_crowd_costs_one_answer_and_nobody_waits_for_one_that_does_not_come() {
        let shared = Shared::<u32>::default();
        let fetches = AtomicU32::new(0);
        let (go, wait) = mpsc::channel::<()>();
        let hour = Duration::from_secs(3600);
        std::thread::scope(|scope| {
            let (began, begun) = mpsc::channel();
            let (shared, fetches) = (&shared, &fetches);
            scope.spawn(move || {
                let answer = shared.get(hour, hour, || {
                    began.send(()).expect("heard");
                    wait.recv().expect("told to go on");
                    Some(fetches.fetch_add(1, Ordering::SeqCst))
                });
                assert_eq!(answer.as_deref(), Some(&0));
            });
            begun.recv().expect("the first one fetches");
            assert_eq!(shared.get(hour, Duration::ZERO, || Some(7)), None);
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(shared.get(hour, hour, || Some(7)).as_deref(), Some(&0)));
            }
            go.send(()).expect("it waits");
        });
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
        assert_eq!(shared.get(Duration::ZERO, hour, || None), None);
        assert_eq!(
            shared.get(Duration::ZERO, hour, || Some(2)).as_deref(),
            Some(&2)
        );
    }
}
