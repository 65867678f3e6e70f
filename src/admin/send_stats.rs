//! `hydrad send-stats`: the queue runner's numbers as gauges for statsd, under the names that Hydra gives them.

use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::connect::StateArgs;
use super::system_status;
use crate::sys::process;
use crate::sys::signals::{self, Signal};
use crate::sys::statsd::Statsd;

const APPLICATION_NAME: &str = "hydra-send-stats";
const EVERY: Duration = Duration::from_secs(30);
/// Of the system types in a report; each makes two gauges.
const TYPES_MAX: usize = 1_000;

/// Gauges and the keys of the report that they show.
const GAUGES: &[(&str, &str)] = &[
    ("steps.active", "nrActiveSteps"),
    ("steps.building", "nrStepsBuilding"),
    ("steps.copying_to", "nrStepsCopyingTo"),
    ("steps.copying_from", "nrStepsCopyingFrom"),
    ("steps.waiting", "nrStepsWaiting"),
    ("steps.runnable", "nrRunnableSteps"),
    ("steps.unfinished", "nrUnfinishedSteps"),
    ("steps.finished", "nrStepsDone"),
    ("steps.retries", "nrRetries"),
    ("steps.unsupported", "nrUnsupportedSteps"),
    ("steps.max_retries", "maxNrRetries"),
    // These two only once a step has ended.
    ("steps.avg_total_time", "avgStepTime"),
    ("steps.avg_build_time", "avgStepBuildTime"),
    ("builds.read", "nrBuildsRead"),
    ("builds.unfinished", "nrQueuedBuilds"),
    ("builds.finished", "nrBuildsDone"),
    ("checks", "nrQueueWakeups"),
    ("bytes_sent", "bytesSent"),
    ("bytes_received", "bytesReceived"),
];

/// Send the queue runner's numbers to statsd
///
/// Every 30 seconds the running queue runner is asked through the database, and its numbers go as gauges over UDP to the host and
/// port of <statsd> in hydra.conf (localhost, 8125). Where nobody listens, or no queue runner answers, that is no error;
/// whatever else goes wrong is a warning in the log, and the next round tries again. hydrad's own metrics (/metrics, for
/// Prometheus) tell more.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  hydrad send-stats               until it is told to stop
  hydrad send-stats --once        for a timer; exit code 0 whatever happens")]
pub struct SendStatsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Send once and exit
    #[arg(long)]
    pub once: bool,
}

/// # Errors
/// When signals cannot be heard.
pub fn run(args: &SendStatsArgs) -> Result<ExitCode> {
    if args.once {
        send_or_warn(&args.state);
        return Ok(ExitCode::SUCCESS);
    }
    let signals = signals::listen().context("cannot listen to signals")?;
    loop {
        send_or_warn(&args.state);
        // After a reload hydra.conf is read again at once, as in every round.
        if let Ok(Signal::Stop) = signals.recv_timeout(EVERY) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn send_or_warn(state: &StateArgs) {
    if let Err(error) = send(state) {
        log::warn!("no numbers for statsd: {error:#}");
    }
}

fn send(state: &StateArgs) -> Result<()> {
    let settings = state.settings()?;
    let address = &settings.statsd;
    (address.host.as_str(), address.port)
        .to_socket_addrs()
        .with_context(|| format!("cannot send to {address} (<statsd> in hydra.conf)"))?;
    let statsd = Statsd::new(&address.host, address.port);
    if let Some(bytes) = process::dirty_bytes() {
        statsd.gauge("hydra.mem.dirty", bytes as f64 / f64::from(1 << 30));
    }
    // First of all that none is up, should the question fail.
    let report = report(state, &settings);
    let up = matches!(&report, Ok(Some(_)));
    statsd.gauge("hydra.queue.up", f64::from(u8::from(up)));
    for (name, value) in report?.iter().flat_map(gauges) {
        statsd.gauge(&format!("hydra.queue.{name}"), value);
    }
    Ok(())
}

/// The report of a queue runner that is up.
fn report(state: &StateArgs, settings: &crate::config::Settings) -> Result<Option<Value>> {
    let target = state.target(settings)?;
    let mut client = target.connect(APPLICATION_NAME)?;
    // As Hydra's program has it: where there is no report nobody is asked.
    let reporter = system_status::QUEUE_RUNNER;
    let answer = system_status::ask_if_up(reporter, &target, &mut client, APPLICATION_NAME)?;
    let Some(answer) = answer else {
        return Ok(None);
    };
    anyhow::ensure!(
        answer.answered,
        "the queue runner does not answer; is it running?"
    );
    Ok(answer.report.filter(|report| report["status"] == "up"))
}

/// Names below `hydra.queue`, and values.
fn gauges(report: &Value) -> Vec<(String, f64)> {
    let mut gauges: Vec<(String, f64)> = GAUGES
        .iter()
        .filter_map(|(name, key)| Some(((*name).to_owned(), report[*key].as_f64()?)))
        .collect();
    let types = report["machineTypes"].as_object();
    for (name, entry) in types.into_iter().flatten().take(TYPES_MAX) {
        let name = type_name(name);
        for key in ["runnable", "running"] {
            gauges.extend(entry[key].as_f64().map(|n| (format!("{name}.{key}"), n)));
        }
    }
    // The local machine has two names in there.
    let machines = report["machines"].as_object();
    let machines = machines
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "ssh://localhost");
    let (mut total, mut in_use) = (0_u32, 0_u32);
    for (_, machine) in machines {
        total += u32::from(machine["enabled"] == true);
        in_use += u32::from(machine["currentJobs"].as_u64() > Some(0));
    }
    gauges.push(("machines.total".to_owned(), f64::from(total)));
    gauges.push(("machines.in_use".to_owned(), f64::from(in_use)));
    gauges
}

/// A system type as part of a name. Hydra replaces the first `:` or `,`; what else would end the name or the datagram goes
/// too.
fn type_name(name: &str) -> String {
    name.replacen([':', ','], "_", 1).replace(
        |c: char| c.is_control() || matches!(c, ':' | '|' | '@' | ' '),
        "_",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_becomes_gauges_with_hydras_names() {
        let machine = |enabled: bool, jobs: u32| json!({"enabled": enabled, "currentJobs": jobs});
        let report = json!({
            "nrActiveSteps": 3, "avgStepTime": 1.5, "nrBuildsRead": 7,
            "machineTypes": {"x86_64-linux:kvm,big": {"runnable": 2, "running": 1}, "a|b\n": {"runnable": 4}},
            "machines": {"localhost": machine(true, 1), "ssh://localhost": machine(true, 1), "m1": machine(false, 0),
                "m2": machine(true, 0)},
        });
        let mut gauges = gauges(&report);
        gauges.sort_by(|a, b| a.0.cmp(&b.0));
        let gauges: Vec<(&str, f64)> = gauges.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(
            gauges,
            [
                ("a_b_.runnable", 4.0),
                ("builds.read", 7.0),
                ("machines.in_use", 1.0),
                ("machines.total", 2.0),
                ("steps.active", 3.0),
                ("steps.avg_total_time", 1.5),
                ("x86_64-linux_kvm,big.runnable", 2.0),
                ("x86_64-linux_kvm,big.running", 1.0),
            ]
        );
        assert_eq!(super::gauges(&json!({})).len(), 2, "machines alone");
    }
}
