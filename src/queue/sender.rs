//! The sending thread of a machine: one at a time copies what is missing. Being that thread *is* the send lock.
//!
//! Which paths are missing is asked again when a step's turn comes, so that two steps which need the same
//! path send it once. Waiting for the machine to substitute happens elsewhere.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{unbounded, Receiver, RecvTimeoutError, Sender};

use super::connection::{Connection, Trouble};
use super::machine::Machine;
use crate::base::lock::lock;
use crate::store::destination::{Destination, Trouble as DestTrouble};
use crate::store::local::PathMeta;
use crate::sys::{heartbeat, thread};
use crate::wire::Error as WireError;

/// A closure to be sent over a build connection.
pub struct SendJob {
    pub connection: Connection,
    /// What the machine did not have when it was last asked, references first.
    pub paths: Vec<Arc<PathMeta>>,
    /// Where the connection goes back to. Nobody listening: the run was ended.
    pub reply: Sender<(Connection, Result<Sent, SendError>)>,
}

/// Why a closure was not sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendError {
    Connection(Trouble),
    /// Something of it is not in the destination store any more.
    Gone(String),
}

impl From<Trouble> for SendError {
    fn from(trouble: Trouble) -> SendError {
        SendError::Connection(trouble)
    }
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    pub paths: u64,
    pub nar_bytes: u64,
}

/// The thread, started when it is needed.
#[derive(Default)]
pub struct SendThread {
    jobs: Mutex<Option<Sender<SendJob>>>,
}

impl SendThread {
    /// Queues a job; jobs are done in order.
    ///
    /// # Errors
    /// When no thread can be started; the job's connection is closed then.
    pub fn send(
        &self,
        machine: &Arc<Machine>,
        dest: &Arc<Destination>,
        job: SendJob,
    ) -> Result<(), Trouble> {
        // Jobs are queued under the lock, so that a thread which leaves for idleness cannot miss one.
        let mut jobs = lock(&self.jobs);
        if jobs.is_none() {
            // Holds at most one job a slot of the machine.
            let (sender, receiver) = unbounded();
            let (machine, dest) = (machine.clone(), dest.clone());
            thread::spawn(format!("send-{}", machine.name), move || {
                serve(&machine, &dest, &receiver)
            })
            .map_err(|error| Trouble::Ours(format!("cannot start a sending thread: {error}")))?;
            *jobs = Some(sender);
        }
        if let Some(jobs) = jobs.as_ref() {
            // The receiver lives as long as `jobs` is there.
            let _ = jobs.send(job);
        }
        Ok(())
    }
}

/// The body of the thread.
fn serve(machine: &Machine, dest: &Destination, jobs: &Receiver<SendJob>) {
    loop {
        heartbeat::about(None);
        heartbeat::idle("waiting for something to send");
        match jobs.recv_timeout(machine.thread_idle_max()) {
            Ok(SendJob {
                mut connection,
                paths,
                reply,
            }) => {
                let sent = send_missing(&mut connection, dest, machine, &paths);
                // Nobody listening: the connection closes here.
                let _ = reply.send((connection, sent));
            }
            Err(RecvTimeoutError::Timeout) => {
                let mut own = lock(&machine.sender.jobs);
                if jobs.is_empty() {
                    *own = None;
                    return;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Asks again what is missing and copies that, references before referrers.
fn send_missing(
    connection: &mut Connection,
    dest: &Destination,
    machine: &Machine,
    paths: &[Arc<PathMeta>],
) -> Result<Sent, SendError> {
    let deadlines = machine.deadlines();
    connection
        .pipes
        .enter("asking which paths are still missing", deadlines.query);
    let asked: Vec<&str> = paths.iter().map(|meta| &*meta.path).collect();
    connection.count_temp_roots(asked.iter().copied());
    let valid = match connection.client.query_valid_paths(&asked, true, false) {
        Ok(valid) => valid.into_iter().collect::<HashSet<String>>(),
        Err(error) => {
            return Err(connection
                .trouble(&error, "asking which paths are missing")
                .into())
        }
    };
    connection.pipes.enter("sending inputs", deadlines.send);
    let mut sent = Sent::default();
    for meta in paths.iter().filter(|meta| !valid.contains(&*meta.path)) {
        let read = dest.read(&meta.path, |info, nar| {
            let result = connection.client.add_to_store_nar(info, nar);
            (result, info.nar_size)
        });
        let (result, nar_size) = read.map_err(|trouble| match trouble {
            DestTrouble::Killed => Trouble::Killed.into(),
            DestTrouble::Gone(message) => SendError::Gone(message),
            DestTrouble::Here(message) => Trouble::Ours(message).into(),
        })?;
        match result {
            Ok(()) => {}
            // Half a NAR has left: the connection is of no use any more, whoever is at fault.
            Err(WireError::Source(error)) => {
                return Err(Trouble::Ours(format!(
                    "cannot read {} from {}: {error}",
                    meta.path,
                    dest.describe()
                ))
                .into());
            }
            Err(error) => {
                return Err(connection
                    .trouble(&error, &format!("sending {}", meta.path))
                    .into())
            }
        }
        sent.paths += 1;
        sent.nar_bytes += nar_size;
    }
    Ok(sent)
}
