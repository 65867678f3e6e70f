//! The `hydrad` binary: chooses the command, prints an error once with its causes, sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use hydrad::admin;
use hydrad::cli::{arguments, Cli, Command};

/// Exit code for what cannot be done, beside 1 for what was done and found wanting.
const CANNOT: u8 = 2;

fn main() -> ExitCode {
    leave_with_the_reader();
    let cli = Cli::parse_from(arguments(std::env::args_os()));
    let serves = matches!(
        cli.command,
        Command::Run(_)
            | Command::QueueRunner(_)
            | Command::Evaluator(_)
            | Command::Notify(_)
            | Command::EvalJobset(_)
    );
    start_log(&cli, serves);
    let result = match cli.command {
        Command::Run(args) => admin::serve::run(&args),
        Command::QueueRunner(args) => admin::serve::queue_runner(&args),
        Command::Evaluator(args) => admin::serve::evaluate(&args),
        Command::Notify(args) => admin::serve::notify(&args),
        Command::EvalJobset(args) => admin::eval_jobset::run(&args),
        Command::Init(args) => admin::serve::init(&args),
        Command::Check(args) => admin::serve::check(&args),
        Command::Enqueue(args) => admin::enqueue::run(&args),
        Command::Build(args) => admin::build::run(&args),
        Command::EvalJobs(args) => admin::eval_jobs::run(&args),
        Command::ClearFailed(args) => admin::clear_failed::run(&args),
        Command::Project(args) => admin::manage::project::run(&args),
        Command::Jobset(args) => admin::manage::jobset::run(&args),
        Command::Input(args) => admin::manage::input::run(&args),
        Command::Apply(args) => admin::manage::apply::run(&args),
        Command::Eval(args) => admin::evaluations::run(&args),
        Command::Queue(args) => admin::queued::run(&args),
        Command::Status(args) => admin::status::run(&args),
        Command::Explain(args) => admin::explain::run(&args),
        Command::Machines(args) => admin::machines::run(&args),
        Command::Drain(args) => admin::orders::drain(&args),
        Command::Disable(args) => admin::orders::disable(&args),
        Command::Enable(args) => admin::orders::enable(&args),
        Command::Cache(args) => admin::cache::run(&args),
        Command::Notifications(args) => admin::notifications::run(&args),
        Command::Log(args) => admin::log::run(&args),
        Command::Simulate(args) => admin::simulate::run(&args),
        Command::UpdateGcRoots(args) => admin::gc_roots::run(&args),
        Command::CreateUser(args) => admin::create_user::run(&args),
        Command::SendStats(args) => admin::send_stats::run(&args),
        Command::Prune(args) => admin::prune::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("hydrad: {error:#}");
        if hydrad::db::error::lacks_tables(&*error) {
            eprintln!("hydrad: tables are missing in this database; run `hydrad init`, or name another one");
        }
        ExitCode::from(CANNOT)
    })
}

/// Whoever reads our output may stop, as `head` does; then there is nothing more to say. (Ending by SIGPIPE instead would also
/// end us when a program that we write to is gone, which is an error to be told.)
fn leave_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        let is_over = |said: &String| {
            said.starts_with("failed printing to stdout") && said.contains("Broken pipe")
        };
        if said.is_some_and(is_over) {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

/// Services say what they do; commands only what is wrong. Under systemd the journal adds the time.
fn start_log(cli: &Cli, serves: bool) {
    let level = match (cli.quiet, cli.verbose, serves) {
        (true, _, _) => "warn",
        (false, 0, false) => "warn",
        (false, 0 | 1, _) => "info",
        (false, 2, _) => "hydrad=debug,info",
        (false, _, _) => "trace",
    };
    let variable = if std::env::var_os("HYDRAD_LOG").is_some() {
        "HYDRAD_LOG"
    } else {
        "RUST_LOG"
    };
    let mut logger =
        env_logger::Builder::from_env(env_logger::Env::new().filter_or(variable, level));
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        logger.format_timestamp(None);
    } else {
        logger.format_timestamp_millis();
    }
    logger.format_target(false).init();
}
