//! What the notifier counts, and the page that shows it. Where Hydra's notifier has a metric of the same meaning ours has its name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::base::lock::lock;
use crate::db::ledger::Backlog;
use crate::model::UnixSecs;
use crate::web::prometheus::{Kind, Page};

/// What is counted for a target and channel.
#[derive(Clone, Copy, Default, Debug)]
struct Calls {
    executions: u64,
    success: u64,
    retry_success: u64,
    error: u64,
    requeue: u64,
    drop: u64,
    postponed: u64,
    /// Of those that told.
    runtime: Histogram,
    telling: Duration,
    /// From the event to the end of the call that told it.
    waiting_secs: u64,
}

/// Upper bounds, seconds: those of Hydra's notifier.
const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

#[derive(Clone, Copy, Default, Debug)]
struct Histogram {
    /// By bucket, each with what the ones before it have; last what is above all bounds.
    counts: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        let first = BUCKETS.iter().position(|bound| value <= *bound);
        for count in &mut self.counts[first.unwrap_or(BUCKETS.len())..] {
            *count += 1;
        }
        self.sum += value;
    }
}

#[derive(Default, Debug)]
struct Counts {
    events: BTreeMap<String, u64>,
    bad: BTreeMap<String, u64>,
    calls: BTreeMap<(&'static str, String), Calls>,
    last_event: UnixSecs,
    turns: u64,
}

/// Shared by the dispatcher, which counts, and the page.
#[derive(Default, Debug)]
pub struct Meters {
    counts: Mutex<Counts>,
    active: AtomicBool,
    /// Why hydra.conf, read again, does not count.
    config_error: Mutex<Option<String>>,
}

/// How a call ended, for counting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Success,
    Requeue,
    Drop,
    /// It was too early; counted as no call.
    Postponed,
}

/// Channels that are none of ours are counted together.
fn known(channel: &str) -> &str {
    match super::event::CHANNELS.contains(&channel) {
        true => channel,
        false => "other",
    }
}

impl Meters {
    pub fn turn(&self) {
        lock(&self.counts).turns += 1;
    }

    pub fn active(&self, active: bool) {
        self.active.store(active, Ordering::SeqCst);
    }

    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// hydra.conf was read again.
    pub fn config(&self, error: Option<String>) {
        *lock(&self.config_error) = error;
    }

    pub fn config_error(&self) -> Option<String> {
        lock(&self.config_error).clone()
    }

    pub fn event(&self, channel: &str, now: UnixSecs) {
        let mut counts = lock(&self.counts);
        counts.last_event = now;
        *counts.events.entry(known(channel).to_owned()).or_default() += 1;
    }

    pub fn bad_event(&self, channel: &str) {
        *lock(&self.counts)
            .bad
            .entry(known(channel).to_owned())
            .or_default() += 1;
    }

    /// A call has ended.
    pub fn call(
        &self,
        channel: &'static str,
        target: &str,
        took: Duration,
        since_event_secs: i64,
        attempts: u32,
        end: End,
    ) {
        let mut counts = lock(&self.counts);
        let calls = counts
            .calls
            .entry((channel, target.to_owned()))
            .or_default();
        if end == End::Postponed {
            calls.postponed += 1;
            return;
        }
        calls.executions += 1;
        calls.telling += took;
        match end {
            End::Success => {
                calls.success += 1;
                calls.retry_success += u64::from(attempts > 1);
                calls.waiting_secs += u64::try_from(since_event_secs).unwrap_or(0);
                calls.runtime.observe(took.as_secs_f64());
            }
            End::Requeue => calls.requeue += 1,
            End::Drop => calls.drop += 1,
            End::Postponed => {}
        }
        if end != End::Success {
            calls.error += 1;
        }
    }

    /// The page of `/metrics`. `backlog` is `None` while the database is away.
    pub fn page(&self, backlog: Option<&Arc<Backlog>>, now: UnixSecs) -> String {
        let counts = lock(&self.counts);
        let mut page = Page::default();
        let mut one = |name: &'static str, kind, help: &str, value: f64| {
            page.metric(name, kind, help);
            page.sample(&[], value);
        };
        one(
            "hydrad_notify_active",
            Kind::Gauge,
            "1 if this notifier is the active one.",
            f64::from(u8::from(self.is_active())),
        );
        one(
            "hydrad_notify_config_error",
            Kind::Gauge,
            "1 if hydra.conf was wrong when it was last read, and the settings before it are in effect.",
            f64::from(u8::from(self.config_error().is_some())),
        );
        one(
            "event_loop_iterations",
            Kind::Counter,
            "Turns of the notifier.",
            counts.turns as f64,
        );
        one(
            "event_received",
            Kind::Counter,
            "Unix time of the last event, as in Hydra.",
            counts.last_event as f64,
        );
        if let Some(backlog) = backlog {
            let oldest = backlog.oldest.map_or(0, |at| (now - at).max(0));
            for (name, help, value) in [
                (
                    "hydrad_notify_waiting",
                    "Deliveries that wait.",
                    backlog.waiting as f64,
                ),
                (
                    "hydrad_notify_held",
                    "Events held because of their age.",
                    backlog.held as f64,
                ),
                (
                    "hydrad_notify_given_up",
                    "Deliveries that were given up.",
                    backlog.given_up as f64,
                ),
                (
                    "hydrad_notify_oldest_seconds",
                    "Age of the oldest event that waits; 0: none.",
                    oldest as f64,
                ),
            ] {
                one(name, Kind::Gauge, help, value);
            }
        }
        for (name, help, by_channel) in [
            ("notify_event", "Events.", &counts.events),
            (
                "notify_event_error",
                "Notifications that were no events.",
                &counts.bad,
            ),
        ] {
            page.metric(name, Kind::Counter, help);
            for (channel, count) in by_channel {
                page.sample(&[("channel", channel)], *count as f64);
            }
        }
        type Value = fn(&Calls) -> f64;
        let of_calls: [(&'static str, &str, Value); 9] = [
            ("notify_plugin_executions", "Calls of plugins.", |calls| {
                calls.executions as f64
            }),
            ("notify_plugin_success", "Calls that told.", |calls| {
                calls.success as f64
            }),
            (
                "notify_plugin_retry_success",
                "Calls that told after others had failed.",
                |calls| calls.retry_success as f64,
            ),
            (
                "hydrad_notify_postponed_total",
                "Calls put off because the host has had enough for now.",
                |calls| calls.postponed as f64,
            ),
            ("notify_plugin_error", "Calls that failed.", |calls| {
                calls.error as f64
            }),
            (
                "notify_plugin_requeue",
                "Calls that failed and will be made again.",
                |calls| calls.requeue as f64,
            ),
            (
                "notify_plugin_drop",
                "Deliveries given up or superseded.",
                |calls| calls.drop as f64,
            ),
            (
                "hydrad_notify_calling_seconds_total",
                "Time in calls.",
                |calls| calls.telling.as_secs_f64(),
            ),
            (
                "hydrad_notify_delay_seconds_total",
                "From event to success, summed.",
                |calls| calls.waiting_secs as f64,
            ),
        ];
        for (name, help, value) in of_calls {
            page.metric(name, Kind::Counter, help);
            for ((channel, target), calls) in &counts.calls {
                page.sample(&[("channel", channel), ("plugin", target)], value(calls));
            }
        }
        page.metric(
            "notify_plugin_runtime",
            Kind::Histogram,
            "Seconds of calls that told.",
        );
        for ((channel, target), calls) in &counts.calls {
            let labels = [("channel", *channel), ("plugin", target.as_str())];
            page.histogram(&labels, &BUCKETS, &calls.runtime.counts, calls.runtime.sum);
        }
        page.text()
    }
}
