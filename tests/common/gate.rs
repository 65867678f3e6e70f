//! A gate at which builds of stub builders wait (their knob `gate`): it counts who has come and lets all go at once.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{RunAs, TestDir};

pub struct Gate {
    dir: TestDir,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
    is_open: Arc<AtomicBool>,
    doorman: Option<JoinHandle<()>>,
}

impl Gate {
    pub fn new() -> Gate {
        let dir = TestDir::new(RunAs::Me);
        let listener = UnixListener::bind(dir.join("gate")).expect("bind a socket of our own");
        std::fs::set_permissions(dir.join("gate"), std::fs::Permissions::from_mode(0o777))
            .expect("chmod of a socket just made");
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let is_open = Arc::new(AtomicBool::new(false));
        let (come, opened) = (waiting.clone(), is_open.clone());
        let doorman = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if opened.load(Ordering::SeqCst) {
                    return;
                }
                come.lock().unwrap_or_else(|e| e.into_inner()).push(stream);
            }
        });
        Gate {
            dir,
            waiting,
            is_open,
            doorman: Some(doorman),
        }
    }

    /// For the knob.
    pub fn path(&self) -> PathBuf {
        self.dir.join("gate")
    }

    /// How many have come.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner()).len()
    }

    /// Let all go, and everybody who comes later.
    pub fn open(&mut self) {
        let Some(doorman) = self.doorman.take() else {
            return;
        };
        self.is_open.store(true, Ordering::SeqCst);
        // Wakes the doorman, who leaves with the listening socket: those in its queue are let go by that.
        let _ = UnixStream::connect(self.path());
        let _ = doorman.join();
        self.waiting
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clear();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}
