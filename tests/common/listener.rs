//! A foreign listener: what any program on any host sees of the NOTIFY messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;

use super::process::patience;
use super::Db;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub channel: String,
    pub payload: String,
}

/// Listens from its start to its drop; the events are kept in the order of their arrival.
pub struct Listener {
    events: Arc<Mutex<Vec<Event>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// When this returns, the LISTENs are in force: nothing committed afterwards is missed.
    pub fn start(db: &Db, channels: &[&str]) -> Listener {
        let mut client = db.client();
        for channel in channels {
            client
                .batch_execute(&format!("listen {channel}"))
                .unwrap_or_else(|e| panic!("listen {channel}: {e:?}"));
        }
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (events_in, stop_in) = (events.clone(), stop.clone());
        let run = move || {
            while !stop_in.load(Ordering::Relaxed) {
                let mut notifications = client.notifications();
                let mut arriving = notifications.timeout_iter(Duration::from_millis(20));
                while let Ok(Some(message)) = arriving.next() {
                    let event = Event {
                        channel: message.channel().into(),
                        payload: message.payload().into(),
                    };
                    events_in
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push(event);
                }
                drop(arriving);
                drop(notifications);
                if client.is_closed() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("listener".into())
            .spawn(run)
            .expect("cannot start a thread");
        Listener {
            events,
            stop,
            thread: Some(thread),
        }
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.events
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }

    /// The payloads of one channel so far.
    pub fn payloads(&self, channel: &str) -> Vec<String> {
        self.events()
            .into_iter()
            .filter(|e| e.channel == channel)
            .map(|e| e.payload)
            .collect()
    }

    /// Wait until the events so far satisfy a condition; panics with the events if they never do.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut(&[Event]) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            let events = self.events();
            if let Some(answer) = condition(&events) {
                return answer;
            }
            assert!(
                started.elapsed() < patience(),
                "waited in vain: {what}; the events were {events:#?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wait for one message with exactly this payload.
    pub fn wait_for(&self, channel: &str, payload: &str) {
        self.wait(&format!("{channel} {payload:?}"), |events| {
            events
                .iter()
                .any(|e| e.channel == channel && e.payload == payload)
                .then_some(())
        });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
