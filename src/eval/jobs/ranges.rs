//! What is still to be evaluated, shared by the workers: ranges of attributes, cut smaller as they run out so that no worker
//! idles while another has many. Knows no process.

use std::sync::{Condvar, Mutex};

use super::protocol::{Range, LINE_BYTES_MAX};
use crate::base::lock::lock;

/// Attributes that are given out at once at most.
const BATCH_MAX: u32 = 100;
/// Into how many batches for each worker the rest is cut at least.
const BATCHES_PER_WORKER: u64 = 2;
/// Bytes of a line that are not ranges.
const LINE_BYTES_RESERVED: usize = 20;

/// All that waits. Its length is bounded by the jobset: each attribute is in it once.
pub(super) struct Ranges {
    state: Mutex<State>,
    changed: Condvar,
    workers: u64,
}

#[derive(Default)]
struct State {
    /// The newest last; they are taken first, so that a set is done before the next one and whoever found a set mostly goes
    /// on in it.
    waiting: Vec<Range>,
    /// Attributes in `waiting`.
    attributes: u64,
    /// Workers that may find more.
    busy: u64,
    closed: bool,
}

impl Ranges {
    pub fn new(workers: u32) -> Ranges {
        Ranges {
            state: Mutex::default(),
            changed: Condvar::new(),
            workers: u64::from(workers.max(1)),
        }
    }

    pub fn add(&self, ranges: Vec<Range>) {
        let mut state = lock(&self.state);
        for range in ranges.into_iter().rev() {
            state.attributes += u64::from(range.count);
            state.waiting.push(range);
        }
        self.changed.notify_all();
    }

    /// The next batch for one line, of at most `attributes_max`; waits while there is none but one may be found. `None` when
    /// everything is done or closed. Whoever takes a batch has to say [`Ranges::done`] after it.
    pub fn take(&self, attributes_max: u32) -> Option<Vec<Range>> {
        let mut state = lock(&self.state);
        loop {
            if state.closed || (state.waiting.is_empty() && state.busy == 0) {
                self.changed.notify_all();
                return None;
            }
            if !state.waiting.is_empty() {
                break;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let fair = state.attributes / (BATCHES_PER_WORKER * self.workers);
        let fair = u32::try_from(fair).unwrap_or(u32::MAX);
        let mut left = fair.min(attributes_max).clamp(1, BATCH_MAX);
        let mut batch = Vec::new();
        let mut bytes = LINE_BYTES_RESERVED;
        while left > 0 {
            let Some(range) = state.waiting.pop() else {
                break;
            };
            bytes += range.text().len();
            if bytes > LINE_BYTES_MAX && !batch.is_empty() {
                state.waiting.push(range);
                break;
            }
            let (now, rest) = cut(range, left);
            left -= now.count;
            batch.push(now);
            state.waiting.extend(rest);
        }
        let taken: u64 = batch.iter().map(|range| u64::from(range.count)).sum();
        state.attributes -= taken;
        state.busy += 1;
        Some(batch)
    }

    /// A batch is done, and all that it found was added.
    pub fn done(&self) {
        let mut state = lock(&self.state);
        state.busy -= 1;
        if state.busy == 0 {
            self.changed.notify_all();
        }
    }

    /// Nobody gets anything any more.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// At most so many from its beginning, and the rest.
pub(super) fn cut(range: Range, count: u32) -> (Range, Option<Range>) {
    if range.count <= count {
        return (range, None);
    }
    let rest = Range {
        set: range.set.clone(),
        first: range.first + count,
        count: range.count - count,
    };
    (Range { count, ..range }, Some(rest))
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{ranges, Set};
    use super::*;

    fn set(path: Vec<u32>, count: u32) -> Vec<Range> {
        let names = (0..count).map(|n| format!("j{n}")).collect();
        let prefix = String::new();
        ranges(
            Set {
                path,
                prefix,
                names,
            },
            &mut |_| {},
        )
    }

    fn size(batch: &[Range]) -> u32 {
        batch.iter().map(|range| range.count).sum()
    }

    #[test]
    fn batches_get_smaller_towards_the_end() {
        let queue = Ranges::new(2);
        queue.add(set(vec![], 1_000));
        let mut sizes = Vec::new();
        while let Some(batch) = queue.take(u32::MAX) {
            sizes.push(size(&batch));
            queue.done();
        }
        assert_eq!(sizes.iter().sum::<u32>(), 1_000);
        assert_eq!((sizes[0], sizes[sizes.len() - 1]), (100, 1));
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    }

    #[test]
    fn small_sets_share_a_line_of_bounded_length() {
        let queue = Ranges::new(1);
        for n in 0..1_000 {
            queue.add(set(vec![100_000, n], 1));
        }
        let batch = queue.take(100).expect("a batch");
        let line = super::super::protocol::go(&batch);
        assert!(line.len() <= LINE_BYTES_MAX && batch.len() > 30, "{line}");
        queue.done();
        assert_eq!(size(&queue.take(5).expect("a batch")), 5);
    }

    #[test]
    fn whoever_has_nothing_waits_for_what_others_find() {
        let queue = Ranges::new(2);
        queue.add(set(vec![], 1));
        let batch = queue.take(10).expect("a batch");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| queue.take(10).map(|batch| size(&batch)));
            queue.add(batch[0].enter(vec!["a".to_owned()], &mut |_| {}));
            assert_eq!(other.join().expect("no panic"), Some(1));
        });
        queue.done();
        queue.done();
        assert!(queue.take(10).is_none());
    }

    #[test]
    fn closing_ends_all_waits() {
        let queue = Ranges::new(2);
        queue.add(set(vec![], 3));
        let _held = queue.take(1);
        queue.close();
        assert!(queue.take(1).is_none());
    }
}
