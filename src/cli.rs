//! The command line: one definition for parsing and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin;
use crate::admin::connect::StateArgs;

/// The complete backend of a Nix build farm
///
/// hydrad serves Hydra's database, hydra.conf and machines file and builds on plain ssh builders.
/// Start with `hydrad check`, which writes nothing, then `hydrad run`.
#[derive(Parser, Debug)]
#[command(
    name = "hydrad",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Say more (twice: much more)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say less: warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Run(RunArgs),
    #[command(version)]
    QueueRunner(QueueRunnerArgs),
    #[command(version)]
    Evaluator(EvaluatorArgs),
    #[command(version)]
    Notify(NotifyArgs),
    #[command(version)]
    EvalJobset(admin::eval_jobset::EvalJobsetArgs),
    #[command(version)]
    Init(InitCommand),
    Check(CheckCommand),
    Enqueue(admin::enqueue::EnqueueArgs),
    Build(admin::build::BuildArgs),
    #[command(version)]
    EvalJobs(admin::eval_jobs::EvalJobsArgs),
    ClearFailed(admin::clear_failed::ClearFailedArgs),
    Project(admin::manage::project::ProjectArgs),
    Jobset(admin::manage::jobset::JobsetArgs),
    Input(admin::manage::input::InputArgs),
    Apply(admin::manage::apply::ApplyArgs),
    Eval(admin::evaluations::EvalArgs),
    Queue(admin::queued::QueueArgs),
    Status(admin::status::StatusArgs),
    Explain(admin::explain::ExplainArgs),
    Machines(admin::machines::MachinesArgs),
    Drain(admin::orders::DrainArgs),
    Disable(admin::orders::DisableArgs),
    Enable(admin::orders::EnableArgs),
    Cache(admin::cache::CacheArgs),
    Notifications(admin::notifications::NotificationsArgs),
    Log(admin::log::LogArgs),
    Simulate(admin::simulate::SimulateArgs),
    #[command(version)]
    UpdateGcRoots(admin::gc_roots::UpdateGcRootsArgs),
    #[command(version)]
    CreateUser(admin::create_user::CreateUserArgs),
    #[command(version)]
    SendStats(admin::send_stats::SendStatsArgs),
    Prune(admin::prune::PruneArgs),
}

/// Run all configured services in one process
///
/// With --state DIR everything lives in DIR: a private PostgreSQL (made at the first start), logs and GC roots. Without
/// it the database is the one that HYDRA_DBI, HYDRA_DATABASE_URL, PG* or hydra.conf name, by default `hydra` on this host.
///
/// SIGTERM stops: nothing new is started, running steps get `stop_timeout`. SIGHUP reads hydra.conf and the machines again.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Start although Hydra's own programs work on the same database
    #[arg(long)]
    pub beside: bool,
}

/// Run the queue runner alone
///
/// For hosts where the evaluator and the notifier are other processes, and for units and scripts made for Hydra's
/// hydra-queue-runner: all of that program's options are understood.
#[derive(Args, Debug)]
pub struct QueueRunnerArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Print the report of the running queue runner as one line of JSON (`{"status":"down"}` if there is none)
    ///
    /// Exit code 1 if it did not answer within 5 s. `hydrad status` says more.
    #[arg(long)]
    pub status: bool,
    /// End what a queue runner that is gone left behind, and exit
    ///
    /// Steps it left busy become aborted, and its report is removed. For ExecStopPost=, so that nothing looks busy while
    /// no queue runner is up; the next start would do the same.
    #[arg(long)]
    pub unlock: bool,
    /// Build this queued build and what it needs, nothing else, and exit
    ///
    /// Exit code 0 once it has ended, however; 1 if no machine supports it or it was deleted; 2 if it is not queued.
    #[arg(long, value_name = "ID", value_parser = build_id)]
    pub build_one: Option<i32>,
    /// Only watch the queue runner that works on this database, and report where hydrad would decide otherwise
    ///
    /// Reads the queue, the derivations and the rows of the running queue runner, and follows what it starts and ends. Prints
    /// each difference once: steps started that hydrad would not have started, free slots with something ready, another
    /// order, builds that end in another way, machines and lines of the machines file it does not know. Writes nothing,
    /// takes no lock, connects to no machine. A summary comes now and then and at the end (SIGINT). Exit code 1 if there
    /// was a difference.
    #[arg(long, conflicts_with_all = ["status", "unlock", "build_one", "prometheus_address"])]
    pub shadow: bool,
    /// How many seconds something has to last to be a difference
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        requires = "shadow"
    )]
    pub grace: u64,
    /// Minutes between two summaries
    #[arg(long, value_name = "MINUTES", default_value_t = 10, requires = "shadow", value_parser = clap::value_parser!(u64).range(1..))]
    pub summary_every: u64,
    /// Print JSON, an object a line
    #[arg(long, requires = "shadow")]
    pub json: bool,
    /// Where /metrics is served, instead of queue_runner_metrics_address in hydra.conf
    #[arg(long, value_name = "ADDR:PORT")]
    pub prometheus_address: Option<String>,
    /// Nix's `--option NAME VALUE`, taken for compatibility and ignored
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], action = clap::ArgAction::Append, hide = true)]
    pub option: Vec<String>,
}

/// Run the evaluator alone, or evaluate one jobset
///
/// Evaluates each enabled jobset when it is triggered or its check interval is over, several at
/// the same time, each in a process of its own (`hydrad eval-jobset`). Stands by while another
/// evaluator of hydrad's works on the same database, and takes over when that is gone. For units
/// and scripts made for Hydra's hydra-evaluator: all of that program's options are understood.
///
///   hydrad evaluator                  the service
///   hydrad evaluator nixpkgs trunk    evaluate this jobset now, once, whatever the schedule says
///   hydrad status                     what is evaluated and what is due
///   hydrad explain nixpkgs:trunk      why a jobset is not evaluated
///
/// SIGTERM stops: evaluations are ended (SIGTERM, after `stop_timeout` SIGKILL) and made again
/// after the next start. SIGHUP reads hydra.conf again. Exit code with PROJECT and JOBSET: 0
/// however the evaluation ended, as in Hydra (`hydrad eval-jobset` tells that), 1 if there is no
/// such jobset or it is disabled.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct EvaluatorArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Evaluate this jobset once, and exit
    #[arg(value_names = ["PROJECT", "JOBSET"], num_args = 2)]
    pub jobset: Vec<String>,
    /// Say that nothing is being evaluated, and exit
    ///
    /// Jobsets that an evaluator which is gone left looking as if they were being evaluated do not any more. For
    /// ExecStopPost=; the next start does the same. Exit code 1 if an evaluator is at work.
    #[arg(long, conflicts_with = "jobset")]
    pub unlock: bool,
    /// Nix's `--option NAME VALUE`, taken for compatibility and ignored
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], action = clap::ArgAction::Append, hide = true)]
    pub option: Vec<String>,
}

/// Run the notifier alone
///
/// Hears what PostgreSQL announces and tells whoever hydra.conf names: <runcommand> and <webhook> blocks. Stands by while
/// another notifier of hydrad's works on the same database, and takes over when that is gone. For units and scripts made for
/// Hydra's hydra-notify too.
///
/// SIGTERM stops: what is being told gets `stop_timeout`. Files with secrets are read anew for each call.
#[derive(Args, Debug)]
pub struct NotifyArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Tell what is marked as not yet told, try everything else that waits once, and exit
    #[arg(long)]
    pub queued_only: bool,
}

fn build_id(text: &str) -> Result<i32, String> {
    text.parse::<i32>()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| "‘--build-one’ requires a build ID".to_owned())
}

#[derive(Args, Debug)]
pub struct InitCommand {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub init: admin::init::InitArgs,
}

#[derive(Args, Debug)]
pub struct CheckCommand {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub check: admin::check::CheckArgs,
}

/// The arguments with the program's own name in front: `hydra-queue-runner` becomes `hydrad queue-runner`.
pub fn arguments(args: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut args: Vec<std::ffi::OsString> = args.into_iter().collect();
    let name = args
        .first()
        .map(PathBuf::from)
        .and_then(|path| path.file_name().map(|name| name.to_owned()));
    let service = match name.as_deref().and_then(|name| name.to_str()) {
        Some("hydra-queue-runner") => "queue-runner",
        Some("hydra-init") => "init",
        Some("hydra-update-gc-roots") => "update-gc-roots",
        Some("hydra-notify") => "notify",
        Some("hydra-create-user") => "create-user",
        Some("hydra-send-stats") => "send-stats",
        Some("hydra-eval-jobs") => "eval-jobs",
        Some("hydra-eval-jobset") => "eval-jobset",
        Some("hydra-evaluator") => "evaluator",
        _ => return args,
    };
    args.insert(1, service.into());
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn old_names_choose_their_service() {
        let args = |words: &[&str]| arguments(words.iter().map(|word| word.into()));
        assert_eq!(
            args(&["/usr/bin/hydra-queue-runner", "-v"]),
            ["/usr/bin/hydra-queue-runner", "queue-runner", "-v"]
        );
        for (old, command) in [
            ("hydra-create-user", "create-user"),
            ("hydra-send-stats", "send-stats"),
            ("hydra-init", "init"),
        ] {
            assert_eq!(args(&[old]), [old, command]);
        }
        assert_eq!(args(&["hydrad", "run"]), ["hydrad", "run"]);
    }
}
