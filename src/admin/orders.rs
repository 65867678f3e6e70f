//! `hydrad drain`, `disable` and `enable`: orders about machines, remembered in the database.

use std::process::ExitCode;

use anyhow::{bail, Context as _, Result};

use super::connect::StateArgs;
use super::explain::ask;
use super::table::duration;
use crate::db::orders;
use crate::plan::event::{MachineOrder, OrderState};
use crate::plan::explanation::Subject;
use crate::queue::explain::question;
use crate::sys::clock::unix_now;

/// Let a machine finish what it runs and give it nothing new
///
/// MACHINE is the first column of the machines file. Remembered in the database: it holds for every
/// queue runner, at once and after a restart, until `hydrad enable` or --until. Steps that only
/// this machine could do wait.
///
///   hydrad drain builder@big --until 2h --reason "new disk"
///   hydrad drain builder@big --until '2026-12-01 08:00'
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct DrainArgs {
    #[command(flatten)]
    pub order: OrderArgs,
}

/// As drain, and stop the running steps: they go to other machines
///
/// A step that is bringing its outputs already may finish. The others end as aborted, with who
/// disabled the machine, without counting against the step or the machine.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct DisableArgs {
    #[command(flatten)]
    pub order: OrderArgs,
}

#[derive(clap::Args, Debug)]
pub struct OrderArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// When it ends by itself: 30m, 2h, 3d, or a date and time as PostgreSQL reads it
    #[arg(long, value_name = "T")]
    pub until: Option<String>,
    /// Shown by explain
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Also if the queue runner does not know such a machine or does not answer
    #[arg(long)]
    pub force: bool,
}

/// Let a drained or disabled machine take steps again
///
/// Also ends its being set aside after faults.
#[derive(clap::Args, Debug)]
pub struct EnableArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// # Errors
/// When the order cannot be understood or remembered.
pub fn drain(args: &DrainArgs) -> Result<ExitCode> {
    order(&args.order, OrderState::Drained)
}

/// # Errors
/// As [`drain`].
pub fn disable(args: &DisableArgs) -> Result<ExitCode> {
    order(&args.order, OrderState::Disabled)
}

/// # Errors
/// As [`drain`].
pub fn enable(args: &EnableArgs) -> Result<ExitCode> {
    let args = OrderArgs {
        state: args.state.clone(),
        machine: args.machine.clone(),
        until: None,
        reason: None,
        force: true,
    };
    order(&args, OrderState::Enabled)
}

fn order(args: &OrderArgs, state: OrderState) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let mut client = target.connect("hydrad-machines")?;
    let now = unix_now();
    let until = match &args.until {
        None => None,
        Some(text) => Some(match span(text) {
            Some(secs) => now + secs,
            None => orders::moment(&mut client, text)
                .with_context(|| format!("--until {text}: neither a time like 2h nor a date"))?,
        }),
    };
    if until.is_some_and(|until| until <= now) {
        bail!(
            "--until {}: that is over",
            args.until.as_deref().unwrap_or("")
        );
    }
    let subject = Subject::Machine(args.machine.as_str().into());
    let mut alone_for = Vec::new();
    if !args.force {
        match ask(&target, &mut client, &question(&subject)) {
            (Some(answer), _) if answer["known"] == true => {
                let types = answer["now"]["alone_for"].as_array();
                let types = types.into_iter().flatten().filter_map(|kind| kind.as_str());
                alone_for = types.map(str::to_owned).collect();
            }
            (Some(_), _) => bail!(
                "the queue runner knows no machine '{}' (the name is the first column of the machines file); --force \
                 orders it nevertheless",
                args.machine
            ),
            (None, why) => bail!("{}; --force orders it nevertheless", why.unwrap_or_default()),
        }
    }
    let who = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "somebody".into());
    let new = MachineOrder {
        machine: args.machine.as_str().into(),
        state,
        until,
        reason: args.reason.as_deref().map(Into::into),
        who: who.into(),
        since: now,
    };
    orders::set(&mut client, &new)?;
    let end = until.map_or(String::new(), |until| {
        format!(", for {}", duration(until - now))
    });
    println!("'{}' is {}{end}", args.machine, state.word());
    if !alone_for.is_empty() && state != OrderState::Enabled {
        println!(
            "warning: no other machine takes queued steps of {}: they wait until `hydrad enable {}`",
            alone_for.join(", "),
            args.machine
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds of `30m`, `2h`, `3d`, `90s`.
fn span(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at(text.len().checked_sub(1)?);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u32>().ok().map(|n| i64::from(n) * factor)
}
