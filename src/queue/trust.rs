//! May our user build and register paths in the local store? Nix 2.8 does not say in any greeting, so it is tried
//! with a derivation of a platform that does not exist: a trusted user hears of the platform, any other is refused
//! before that. Nothing is left in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Deadlines, Programs, Trouble};
use super::Context;
use crate::config::machines::LocalHost;
use crate::nix::derivation::{Derivation, Output};
use crate::sys::kill::KillSwitch;
use crate::wire::BuildOptions;

const PLATFORM: &str = "hydrad-trust-probe";

/// What the probe found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    Trusted,
    /// Nix's words.
    Refused(String),
    /// The probe itself did not work.
    Unknown(String),
}

/// Tries whether this user may build in the local store.
pub fn probe(store_dir: &str, programs: &Programs) -> Trust {
    let short = Duration::from_secs(30);
    let deadlines = Deadlines {
        connect: short,
        local_greeting: short,
        query: short,
        substitute: short,
        send: short,
        receive: short,
        row: short,
        shutdown: short,
    };
    let line = LocalHost::of_this_host(Some(1), Vec::new()).machine();
    let kill = match KillSwitch::new() {
        Ok(kill) => Arc::new(kill),
        Err(error) => return Trust::Unknown(error.to_string()),
    };
    let mut connection = match Connection::open(&line, programs, None, &deadlines, kill) {
        Ok(connection) => connection,
        Err(Trouble::Machine(message) | Trouble::Ours(message)) => return Trust::Unknown(message),
        Err(Trouble::Killed) => return Trust::Unknown("interrupted".into()),
    };
    probe_over(&mut connection, store_dir, short)
}

/// Tries the same over a connection to any machine, which is of no more use after a refusal.
pub fn probe_over(connection: &mut Connection, store_dir: &str, patience: Duration) -> Trust {
    let path = format!("{store_dir}/00000000000000000000000000000000-{PLATFORM}");
    let output = Output {
        path: Some(path.clone()),
        hash_algo: String::new(),
        hash: String::new(),
    };
    let derivation = Derivation {
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        input_drvs: BTreeMap::new(),
        input_srcs: Vec::new(),
        platform: PLATFORM.to_owned(),
        builder: b"/bin/false".to_vec(),
        args: Vec::new(),
        env: BTreeMap::from([(b"out".to_vec(), path.clone().into_bytes())]),
    };
    connection
        .pipes
        .enter("trying whether it may build", patience);
    let request = connection.client.build_derivation_start::<&str>(
        &format!("{path}.drv"),
        &derivation,
        &[],
        &BuildOptions::default(),
    );
    match request.and_then(|()| connection.client.build_derivation_finish()) {
        Ok(_) => Trust::Trusted,
        Err(error) => match connection.trouble(&error, "trying whether it may build") {
            Trouble::Machine(message)
                if message.contains("privileged") || message.contains("trusted") =>
            {
                Trust::Refused(message)
            }
            Trouble::Machine(message) | Trouble::Ours(message) => Trust::Unknown(message),
            Trouble::Killed => Trust::Unknown("interrupted".into()),
        },
    }
}

/// What to do about a refusal.
pub fn advice() -> String {
    let user = std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "this user".into());
    format!("add `trusted-users = root {user}` to /etc/nix/nix.conf and restart nix-daemon")
}

/// The probe at start: says what is wrong, in the log, before the first build fails of it.
pub fn probe_at_start(context: &Context) {
    match probe(&context.store.dir().0, context.machines.programs()) {
        Trust::Trusted => log::debug!("the local store lets us build and register paths"),
        Trust::Refused(message) => {
            log::error!(
                "the local store does not trust us, nothing can be built here: {message}; {}",
                advice()
            );
        }
        Trust::Unknown(message) => {
            log::warn!("cannot try whether the local store trusts us: {message}")
        }
    }
}
