//! `hydrad run` and `hydrad queue-runner`: settings, database, then the service until a signal ends it.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::connect::{absolute, environment};
use crate::cli::RunArgs;
use crate::db::connect::{self, DbTarget};
use crate::db::embedded::Embedded;
use crate::db::schema::{self, NewVersion, SchemaState};
use crate::queue;
use crate::sys::signals;

/// # Errors
/// When the service cannot start.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    // First of all, so that a signal during a long start is not lost.
    let signals = signals::listen().context("cannot listen to signals")?;
    let settings = args.state.settings()?;
    let (target, embedded) = match &args.state.state {
        None => (DbTarget::from_env(&environment, &settings)?, None),
        Some(dir) => {
            connect::refuse_two_databases(&environment, &settings)?;
            let embedded = Embedded::start(&absolute(dir)?)?;
            let target = embedded.target();
            init_if_empty(&target)?;
            (target, Some(embedded))
        }
    };
    let config = queue::Config { settings, target, beside: args.beside };
    let result = queue::run(&config, &signals);
    if let Some(embedded) = embedded {
        embedded.stop()?;
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

/// The private database of a new state folder gets its tables.
fn init_if_empty(target: &DbTarget) -> Result<()> {
    let mut client = target.connect(queue::APPLICATION_NAME)?;
    let found = schema::check_schema(&mut client)?;
    if found.state == SchemaState::Empty || found.serve().is_err() {
        schema::init(&mut client, NewVersion::V87)?;
    }
    Ok(())
}
