//! The names of all metrics, and what each means.
//!
//! Where Hydra's queue runner (the C++ one or today's) has a metric of the same meaning, ours has its name, also where that
//! name is not one Prometheus would recommend: dashboards go on working. Everything else is called `hydrad_...`, counters
//! end in `_total` and times are seconds. Pure: a [`Report`] goes in, a page comes out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::Status;
use super::prometheus::{Kind, Page};
use crate::db::pool::PoolMetrics;
use crate::db::writer::WriterMetrics;
use crate::model::{Phase, UnixSecs};
use crate::plan::event::Hold;
use crate::plan::explanation::Standing;
use crate::plan::{MachineStatus, PhaseMs, Snapshot};
use crate::store::binary_cache::CacheMetrics;
use crate::sys::heartbeat::Beat;
use crate::sys::process::Usage;

/// How things are, from everybody who knows something of it.
pub struct Report {
    /// `None`: the plan does not answer in time.
    pub snapshot: Option<Arc<Snapshot>>,
    pub now: UnixSecs,
    pub uptime: Duration,
    pub pool: PoolMetrics,
    pub writer: WriterMetrics,
    pub queue: QueueMetrics,
    /// Builds whose end has not been delivered to anybody, and since when the oldest waits; `None`: the database is away.
    pub notifications: Option<(u64, Option<UnixSecs>)>,
    pub threads: Vec<Beat>,
    /// When the threads were looked at, and how long one may stand still.
    pub looked_at: Instant,
    pub patience: Option<Duration>,
    pub process: Usage,
    /// Answers by status, connections, connections closed to make room.
    pub http: (Vec<(Status, u64)>, u64, u64),
}

/// What the threads of the queue runner have counted.
#[derive(Clone, Default, Debug)]
pub struct QueueMetrics {
    /// Events that wait for the plan.
    pub inbox: u64,
    pub plan_running: Duration,
    pub plan_waiting: Duration,
    pub plan_wakeups: u64,
    pub monitor_running: Duration,
    pub monitor_waiting: Duration,
    pub monitor_wakeups: u64,
    pub lists_begun: u64,
    pub lists_read: u64,
    pub builds_read: u64,
    pub builds_read_time: Duration,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// The binary cache that is the destination store, if it is one.
    pub cache: Option<CacheMetrics>,
}

/// A machine's standing, in a word; the second is whether it takes steps.
pub fn standing(machine: &MachineStatus) -> (&'static str, bool) {
    match &machine.standing {
        Standing::Ready => ("ready", true),
        Standing::Full => ("full", false),
        Standing::OnTrial { busy, .. } => ("on_trial", !busy),
        Standing::SetAside { .. } => ("set_aside", false),
        Standing::Ordered {
            disabled: false, ..
        } => ("drained", false),
        Standing::Ordered { disabled: true, .. } => ("disabled", false),
        Standing::LowDisk { .. } => ("low_disk", false),
        Standing::NoSlots => ("no_slots", false),
        Standing::Removed => ("removed", false),
    }
}

/// Every standing there is.
const STANDINGS: [&str; 9] = [
    "ready",
    "full",
    "on_trial",
    "set_aside",
    "drained",
    "disabled",
    "low_disk",
    "no_slots",
    "removed",
];

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = Page::default();
    of_process(&mut page, report);
    of_threads(&mut page, report);
    of_database(&mut page, report);
    of_queue_threads(&mut page, &report.queue);
    if let Some(cache) = &report.queue.cache {
        of_cache(&mut page, cache);
    }
    of_http(&mut page, report);
    if let Some(snapshot) = &report.snapshot {
        of_queue(&mut page, snapshot);
        of_machines(&mut page, snapshot);
        of_jobsets(&mut page, snapshot);
    }
    page.text()
}

fn counter(page: &mut Page, name: &'static str, help: &str, value: f64) {
    page.metric(name, Kind::Counter, help);
    page.sample(&[], value);
}

fn gauge(page: &mut Page, name: &'static str, help: &str, value: f64) {
    page.metric(name, Kind::Gauge, help);
    page.sample(&[], value);
}

fn micros(duration: Duration) -> f64 {
    duration.as_micros() as f64
}

fn of_process(page: &mut Page, report: &Report) {
    let process = &report.process;
    let version = env!("CARGO_PKG_VERSION");
    page.metric(
        "hydrad_build_info",
        Kind::Gauge,
        "Always 1; the version is in the label.",
    );
    page.sample(&[("version", version)], 1.0);
    gauge(
        page,
        "hydraqueuerunner_current_time_seconds",
        "Unix time.",
        report.now as f64,
    );
    gauge(
        page,
        "hydraqueuerunner_uptime_seconds",
        "Seconds since the start.",
        report.uptime.as_secs() as f64,
    );
    gauge(
        page,
        "hydrad_plan_answers",
        "1 if the plan answered for this page, 0 if it is too busy.",
        f64::from(u8::from(report.snapshot.is_some())),
    );
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory.",
            process.resident_bytes,
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory.",
            process.virtual_bytes,
        ),
        (
            "process_open_fds",
            "Open file descriptors.",
            process.open_fds,
        ),
        (
            "process_max_fds",
            "File descriptors that may be open.",
            process.max_fds,
        ),
        (
            "process_threads",
            "Threads of the process.",
            process.threads,
        ),
    ] {
        if let Some(value) = value {
            gauge(page, name, help, value as f64);
        }
    }
    if let Some(used) = process.cpu {
        counter(
            page,
            "process_cpu_seconds_total",
            "CPU time of the process, without its children.",
            used.as_secs_f64(),
        );
    }
    let started = report.now as f64 - report.uptime.as_secs_f64();
    gauge(
        page,
        "process_start_time_seconds",
        "Unix time of the start.",
        started,
    );
}

/// The threads of a machine's slots count as one: there may be thousands.
fn thread_group(thread: &str) -> &str {
    let without_number = || thread.rsplit_once('-').map(|(group, _)| group);
    match thread.starts_with("slot-") {
        true => without_number().unwrap_or(thread),
        false => thread,
    }
}

fn of_threads(page: &mut Page, report: &Report) {
    let mut ages: BTreeMap<&str, Duration> = BTreeMap::new();
    for beat in &report.threads {
        let age = report.looked_at.saturating_duration_since(beat.last_sign);
        let oldest = ages.entry(thread_group(&beat.thread)).or_default();
        *oldest = age.max(*oldest);
    }
    let help = "Seconds since a thread last showed life, waiting for work included; of a machine's slots the longest.";
    page.metric("hydrad_thread_heartbeat_age_seconds", Kind::Gauge, help);
    for (thread, age) in ages {
        page.sample(&[("thread", thread)], age.as_secs_f64());
    }
    let overdue = |beat: &&Beat| {
        let patience = report.patience?;
        beat.overdue(report.looked_at, patience)
    };
    let stuck = || report.threads.iter().filter(|beat| overdue(beat).is_some());
    gauge(
        page,
        "hydrad_threads_stuck",
        "Threads that stand still beyond what their phase allows.",
        stuck().count() as f64,
    );
    let help = "Seconds that a thread has stood still, for those that stand still beyond what their phase allows.";
    page.metric("hydrad_thread_stuck_seconds", Kind::Gauge, help);
    for beat in stuck() {
        let age = report.looked_at.saturating_duration_since(beat.last_sign);
        page.sample(
            &[("thread", &beat.thread), ("phase", beat.phase)],
            age.as_secs_f64(),
        );
    }
}

fn of_database(page: &mut Page, report: &Report) {
    let (pool, writer) = (&report.pool, &report.writer);
    gauge(
        page,
        "hydrad_db_pool_size",
        "Connections the pool may have (max_db_connections).",
        f64::from(pool.max),
    );
    page.metric(
        "hydrad_db_pool_connections",
        Kind::Gauge,
        "Connections of the pool by what they do.",
    );
    page.sample(&[("state", "idle")], f64::from(pool.idle));
    page.sample(&[("state", "in_use")], f64::from(pool.in_use));
    for (name, help, value) in [
        (
            "hydrad_db_pool_waits_total",
            "Checkouts that found no idle connection.",
            pool.waits_total,
        ),
        (
            "hydrad_db_pool_timeouts_total",
            "Checkouts that got no connection in time.",
            pool.timeouts_total,
        ),
        (
            "hydrad_db_pool_connects_total",
            "Connections made.",
            pool.connects_total,
        ),
        (
            "hydrad_db_pool_connect_failures_total",
            "Connections that could not be made.",
            pool.connect_failures_total,
        ),
        (
            "hydrad_db_pool_broken_total",
            "Connections found dead and replaced.",
            pool.broken_total,
        ),
        (
            "hydrad_writer_groups_total",
            "Transactions of the writer that were committed.",
            writer.groups,
        ),
        (
            "hydrad_writer_records_total",
            "Records written in them.",
            writer.records,
        ),
        (
            "hydrad_writer_failures_total",
            "Transactions of the writer that did not work at the first try.",
            writer.failures,
        ),
    ] {
        counter(page, name, help, value as f64);
    }
    counter(
        page,
        "hydrad_db_pool_wait_seconds_total",
        "Seconds that checkouts spent waiting for a connection.",
        pool.waited_total.as_secs_f64(),
    );
    counter(
        page,
        "hydrad_writer_seconds_total",
        "Seconds that the writer spent in transactions.",
        writer.busy.as_secs_f64(),
    );
    let away = writer
        .away_since
        .map_or(0, |since| report.now.saturating_sub(since).max(1));
    gauge(
        page,
        "hydrad_database_away_seconds",
        "For how long the writer has not been able to use the database; 0: it can.",
        away as f64,
    );
    if let Some((pending, oldest)) = report.notifications {
        gauge(
            page,
            "hydrad_notifications_pending",
            "Finished builds whose notification no notifier has delivered yet.",
            pending as f64,
        );
        let age = oldest.map_or(0, |oldest| report.now.saturating_sub(oldest).max(0));
        gauge(
            page,
            "hydrad_notifications_oldest_seconds",
            "Age of the oldest of them; 0: there is none.",
            age as f64,
        );
    }
}

fn of_queue_threads(page: &mut Page, queue: &QueueMetrics) {
    gauge(
        page,
        "hydrad_plan_inbox_length",
        "Events that wait for the plan.",
        queue.inbox as f64,
    );
    for (name, help, value) in [
        (
            "hydraqueuerunner_queue_checks_started_total",
            "Lists of the unfinished builds begun to be read.",
            queue.lists_begun as f64,
        ),
        (
            "hydraqueuerunner_queue_checks_finished_total",
            "Lists of the unfinished builds read completely.",
            queue.lists_read as f64,
        ),
        (
            "hydraqueuerunner_monitor_checks",
            "Times the queue monitor was woken up.",
            queue.monitor_wakeups as f64,
        ),
        (
            "hydraqueuerunner_dispatch_wakeup",
            "Times the plan was woken up.",
            queue.plan_wakeups as f64,
        ),
        (
            "hydraqueuerunner_dispatch_time_ms",
            "Milliseconds the plan has worked.",
            queue.plan_running.as_millis() as f64,
        ),
        (
            "hydraqueuerunner_dispatcher_time_spent_running_total",
            "Microseconds the plan has worked.",
            micros(queue.plan_running),
        ),
        (
            "hydraqueuerunner_dispatcher_time_spent_waiting_total",
            "Microseconds the plan has waited for something to do.",
            micros(queue.plan_waiting),
        ),
        (
            "hydraqueuerunner_monitor_time_spent_running_total",
            "Microseconds the queue monitor has worked.",
            micros(queue.monitor_running),
        ),
        (
            "hydraqueuerunner_monitor_time_spent_waiting_total",
            "Microseconds the queue monitor has waited for something to do.",
            micros(queue.monitor_waiting),
        ),
        (
            "hydraqueuerunner_builds_read",
            "Rows of builds read from the database.",
            queue.builds_read as f64,
        ),
        (
            "hydraqueuerunner_builds_read_time_ms",
            "Milliseconds spent reading them.",
            queue.builds_read_time.as_millis() as f64,
        ),
        (
            "hydrad_sent_bytes_total",
            "Bytes of inputs sent to machines, as NARs.",
            queue.bytes_sent as f64,
        ),
        (
            "hydrad_received_bytes_total",
            "Bytes of outputs received from machines, as NARs.",
            queue.bytes_received as f64,
        ),
    ] {
        counter(page, name, help, value);
    }
}

fn of_cache(page: &mut Page, cache: &CacheMetrics) {
    for (name, help, value) in [
        (
            "hydraqueuerunner_store_nar_info_read",
            "Narinfos read from the binary cache.",
            cache.nar_info_read,
        ),
        (
            "hydraqueuerunner_store_nar_info_read_averted",
            "Questions about paths in the binary cache that memory answered.",
            cache.nar_info_read_averted,
        ),
        (
            "hydraqueuerunner_store_nar_info_missing",
            "Narinfos asked for that were not there.",
            cache.nar_info_missing,
        ),
        (
            "hydraqueuerunner_store_nar_info_write",
            "Narinfos written to the binary cache.",
            cache.nar_info_write,
        ),
        (
            "hydraqueuerunner_store_nar_read",
            "NARs read from the binary cache.",
            cache.nar_read,
        ),
        (
            "hydraqueuerunner_store_nar_read_bytes",
            "Bytes of these NARs.",
            cache.nar_read_bytes,
        ),
        (
            "hydraqueuerunner_store_nar_read_compressed_bytes",
            "Bytes of these NARs as they are in the cache.",
            cache.nar_read_compressed_bytes,
        ),
        (
            "hydraqueuerunner_store_nar_write",
            "NARs written to the binary cache.",
            cache.nar_write,
        ),
        (
            "hydraqueuerunner_store_nar_write_averted",
            "NARs whose file was in the binary cache already.",
            cache.nar_write_averted,
        ),
        (
            "hydraqueuerunner_store_nar_write_bytes",
            "Bytes of the NARs written.",
            cache.nar_write_bytes,
        ),
        (
            "hydraqueuerunner_store_nar_write_compressed_bytes",
            "Bytes of the NARs written, as they are in the cache.",
            cache.nar_write_compressed_bytes,
        ),
        (
            "hydraqueuerunner_store_nar_write_compression_time_ms",
            "Milliseconds spent compressing NARs.",
            cache.nar_write_compression_ms,
        ),
        (
            "hydrad_cache_logs_total",
            "Logs put into the binary cache.",
            cache.log_write,
        ),
        (
            "hydrad_cache_log_failures_total",
            "Attempts to put a log into the binary cache that did not work.",
            cache.log_write_failed,
        ),
    ] {
        counter(page, name, help, value as f64);
    }
    gauge(
        page,
        "hydraqueuerunner_store_path_info_cache_size",
        "Answers of the binary cache that are remembered.",
        cache.remembered as f64,
    );
    gauge(
        page,
        "hydraqueuerunner_store_nar_compression_savings",
        "The part of the NARs' bytes that compressing saved.",
        cache.compression_savings(),
    );
    gauge(
        page,
        "hydraqueuerunner_store_nar_compression_speed",
        "MiB of NARs compressed in a second.",
        cache.compression_speed(),
    );
    let of = &cache.requests;
    for (name, help, samples) in [
        (
            "hydrad_cache_requests_total",
            "Requests to the binary cache that is the destination store; `head` asks what is there.",
            &[
                ("get", of.gets as f64),
                ("head", of.heads as f64),
                ("put", of.puts as f64),
            ][..],
        ),
        (
            "hydrad_cache_bytes_total",
            "Bytes read from it and written to it.",
            &[("get", of.get_bytes as f64), ("put", of.put_bytes as f64)],
        ),
        (
            "hydrad_cache_seconds_total",
            "Seconds these requests took together.",
            &[
                ("get", of.get_ms as f64 / 1000.0),
                ("put", of.put_ms as f64 / 1000.0),
            ],
        ),
    ] {
        page.metric(name, Kind::Counter, help);
        for (request, value) in samples {
            page.sample(&[("request", request)], *value);
        }
    }
}

fn of_http(page: &mut Page, report: &Report) {
    let (answers, connections, evicted) = &report.http;
    page.metric(
        "hydrad_http_answers_total",
        Kind::Counter,
        "Answers given over HTTP, by status.",
    );
    for (status, count) in answers {
        page.sample(&[("code", &status.code().to_string())], *count as f64);
    }
    gauge(
        page,
        "hydrad_http_connections",
        "HTTP connections.",
        *connections as f64,
    );
    counter(
        page,
        "hydrad_http_evicted_total",
        "HTTP connections closed to make room for others.",
        *evicted as f64,
    );
}

/// Time in phases as Hydra divides it, milliseconds: all, importing inputs, building, fetching outputs.
pub fn hydra_times(ms: &PhaseMs) -> [u64; 4] {
    [
        ms.iter().sum(),
        ms[Phase::SendingInputs.index()],
        ms[Phase::Building.index()],
        ms[Phase::ReceivingOutputs.index()],
    ]
}

fn of_queue(page: &mut Page, now: &Snapshot) {
    let runs = |wanted: Phase| {
        let of_phase = now.phases.iter().filter(|(phase, _)| *phase == wanted);
        of_phase.map(|(_, runs)| *runs).sum::<u64>() as f64
    };
    let failed = now.builds_done - now.builds_succeeded;
    for (name, help, value) in [
        (
            "hydraqueuerunner_queue_build_loads_total",
            "Builds taken into the queue.",
            now.builds_loaded,
        ),
        (
            "hydraqueuerunner_queue_steps_created_total",
            "Steps made for them.",
            now.steps_created,
        ),
        (
            "hydraqueuerunner_builds_finished",
            "Builds finished.",
            now.builds_done,
        ),
        (
            "hydraqueuerunner_builds_succeeded",
            "Builds that succeeded.",
            now.builds_succeeded,
        ),
        (
            "hydraqueuerunner_builds_failed",
            "Builds that ended otherwise.",
            failed,
        ),
        (
            "hydraqueuerunner_steps_started",
            "Attempts begun.",
            now.steps_started,
        ),
        (
            "hydraqueuerunner_steps_finished",
            "Steps built or failed for good.",
            now.steps.steps,
        ),
        (
            "hydraqueuerunner_steps_retries",
            "Tries repeated after a failure that another try may cure.",
            now.retries,
        ),
        (
            "hydraqueuerunner_steps_unsupported_aborted",
            "Steps given up because no machine supports them.",
            now.steps_given_up,
        ),
        (
            "hydrad_stale_answers_total",
            "Answers that came too late to matter.",
            now.stale_answers,
        ),
        (
            "hydrad_outputs_substituted_total",
            "Outputs brought into the destination store without building them.",
            now.outputs_substituted,
        ),
        (
            "hydrad_stalls_total",
            "Times the log said that the queue does not move.",
            now.stalls,
        ),
    ] {
        counter(page, name, help, value as f64);
    }
    for (name, help, value) in [
        (
            "hydraqueuerunner_builds_unfinished",
            "Builds in the queue.",
            now.builds_queued as f64,
        ),
        (
            "hydraqueuerunner_steps_unfinished",
            "Steps not built yet.",
            now.steps_unfinished as f64,
        ),
        (
            "hydraqueuerunner_steps_runnable",
            "Steps ready to be started.",
            now.steps_runnable as f64,
        ),
        (
            "hydraqueuerunner_steps_building",
            "Steps being built.",
            runs(Phase::Building),
        ),
        (
            "hydraqueuerunner_steps_copying_to",
            "Steps whose inputs are being sent.",
            runs(Phase::SendingInputs),
        ),
        (
            "hydraqueuerunner_steps_copying_from",
            "Steps whose outputs are being received.",
            runs(Phase::ReceivingOutputs),
        ),
        (
            "hydraqueuerunner_steps_waiting",
            "Steps that have a machine and wait for it or for us.",
            runs(Phase::Preparing) + runs(Phase::Connecting),
        ),
        (
            "hydraqueuerunner_steps_unsupported",
            "Ready steps that no machine supports.",
            now.steps_unsupported as f64,
        ),
        (
            "hydraqueuerunner_steps_max_retries",
            "The most tries a step has needed.",
            f64::from(now.retries_most),
        ),
        (
            "hydrad_steps_blocked",
            "Steps that wait for their inputs.",
            now.steps_blocked as f64,
        ),
        (
            "hydrad_steps_deferred",
            "Steps that wait for their next try.",
            now.steps_deferred as f64,
        ),
        (
            "hydrad_steps_uninspected",
            "Steps of which is not known yet whether they have to be built.",
            now.steps_uninspected as f64,
        ),
        (
            "hydrad_steps_running",
            "Attempts under way.",
            now.runs_active as f64,
        ),
        (
            "hydrad_builds_asked",
            "Unfinished builds whose rows have been asked for.",
            now.builds_asked as f64,
        ),
        (
            "hydrad_questions_under_way",
            "Questions to the inspectors under way.",
            now.questions_under_way as f64,
        ),
        (
            "hydrad_questions_waiting",
            "Questions that wait to be asked.",
            now.questions_waiting as f64,
        ),
        (
            "hydrad_tickets_unwritten",
            "Records that are not committed yet.",
            now.tickets_unwritten as f64,
        ),
    ] {
        gauge(page, name, help, value);
    }
    page.metric(
        "hydrad_steps_ready",
        Kind::Gauge,
        "Steps ready to be started, by what keeps them from it.",
    );
    for (wait, steps) in &now.waits {
        page.sample(&[("reason", wait.word())], *steps as f64);
    }
    page.metric(
        "hydrad_held_seconds",
        Kind::Gauge,
        "For how long nothing has been started at all, by reason; 0: that is no reason now.",
    );
    for hold in Hold::ALL {
        let held = now.holds.iter().find(|now| now.hold == hold.word());
        page.sample(
            &[("reason", hold.word())],
            held.map_or(0.0, |held| held.secs.max(1) as f64),
        );
    }
    let stalled = now
        .stall
        .as_ref()
        .map_or(0.0, |stall| now.taken_at.since(stall.since) as f64 / 1000.0);
    gauge(page, "hydrad_stalled_seconds", "For how long nothing has begun to build although steps are ready and slots are free, once the log has said so; 0: all is well.", stalled);
    let [all, import, build, upload] = hydra_times(&now.phase_ms);
    for (name, help, value) in [
        (
            "hydraqueuerunner_steps_total_time_ms",
            "Milliseconds spent in attempts.",
            all,
        ),
        (
            "hydraqueuerunner_steps_total_import_time_ms",
            "Of these, sending inputs.",
            import,
        ),
        (
            "hydraqueuerunner_steps_total_build_time_ms",
            "Of these, building.",
            build,
        ),
        (
            "hydraqueuerunner_steps_total_upload_time_ms",
            "Of these, receiving outputs.",
            upload,
        ),
    ] {
        counter(page, name, help, value as f64);
    }
    if let Some(steps) = Some(now.steps.steps).filter(|steps| *steps > 0) {
        for (name, help, value) in [
            (
                "hydraqueuerunner_steps_avg_total_time_ms",
                "Milliseconds of attempts for each finished step.",
                all,
            ),
            (
                "hydraqueuerunner_steps_avg_import_time_ms",
                "Milliseconds of sending inputs for each finished step.",
                import,
            ),
            (
                "hydraqueuerunner_steps_avg_build_time_ms",
                "Milliseconds of building for each finished step.",
                build,
            ),
            (
                "hydraqueuerunner_steps_avg_upload_time_ms",
                "Milliseconds of receiving outputs for each finished step.",
                upload,
            ),
        ] {
            gauge(page, name, help, (value / steps) as f64);
        }
    }
    let types = &now.system_types;
    type OfType = fn(&crate::plan::SystemTypeStatus) -> f64;
    let of_type: [(&'static str, &str, OfType); 4] = [
        (
            "hydraqueuerunner_machine_type_runnable",
            "Steps ready to be started, by system type.",
            |t| t.runnable as f64,
        ),
        (
            "hydraqueuerunner_machine_type_running",
            "Attempts under way, by system type.",
            |t| t.running as f64,
        ),
        (
            "hydraqueuerunner_machine_type_wait_time",
            "Seconds that the ready steps have waited, summed, by system type.",
            |t| t.wait_secs as f64,
        ),
        (
            "hydraqueuerunner_machine_type_avg_runnable_time",
            "Seconds that a ready step has waited on average, by system type.",
            |t| t.wait_secs.checked_div(t.runnable).unwrap_or(0) as f64,
        ),
    ];
    for (name, help, value) in of_type {
        page.metric(name, Kind::Gauge, help);
        for one in types {
            page.sample(&[("machine_type", &one.name)], value(one));
        }
    }
}

fn of_machines(page: &mut Page, now: &Snapshot) {
    let machines = &now.machines;
    let listed = || machines.iter().filter(|machine| machine.enabled);
    gauge(
        page,
        "hydraqueuerunner_machines_total",
        "Machines that are configured and enabled.",
        listed().count() as f64,
    );
    let in_use = machines.iter().filter(|machine| machine.current > 0);
    gauge(
        page,
        "hydraqueuerunner_machines_in_use",
        "Machines with a slot in use.",
        in_use.count() as f64,
    );
    page.metric(
        "hydrad_machines",
        Kind::Gauge,
        "Machines by whether they take steps and why not.",
    );
    for word in STANDINGS {
        let count = machines
            .iter()
            .filter(|machine| standing(machine).0 == word);
        page.sample(&[("state", word)], count.count() as f64);
    }
    let help = "1 for each machine that takes no step now, with the reason.";
    page.metric("hydrad_machine_unavailable", Kind::Gauge, help);
    for machine in machines {
        let (reason, takes) = standing(machine);
        if !takes {
            page.sample(&[("machine", &machine.name), ("reason", reason)], 1.0);
        }
    }
    page.metric(
        "hydrad_machine_slots",
        Kind::Gauge,
        "Slots of each machine.",
    );
    for machine in machines {
        page.sample(&[("machine", &machine.name)], f64::from(machine.slots));
    }
    type OfMachine = fn(&MachineStatus) -> f64;
    let of_machine: [(&'static str, Kind, &str, OfMachine); 8] = [
        (
            "hydraqueuerunner_machine_current_jobs",
            Kind::Gauge,
            "Slots in use, by machine.",
            |m| f64::from(m.current),
        ),
        (
            "hydraqueuerunner_machine_steps_done",
            Kind::Counter,
            "Attempts whose end was the step's own doing, by machine.",
            |m| m.steps.steps as f64,
        ),
        (
            "hydraqueuerunner_machine_consecutive_failures",
            Kind::Gauge,
            "Faults of the machine since it last worked.",
            |m| f64::from(m.consecutive_failures),
        ),
        (
            "hydraqueuerunner_machine_idle_since_timestamp",
            Kind::Gauge,
            "Unix time since which no slot is in use; 0: one is.",
            |m| m.idle_since.map_or(0.0, |since| since.secs() as f64),
        ),
        (
            "hydraqueuerunner_machine_total_step_time_ms",
            Kind::Counter,
            "Milliseconds of attempts, by machine.",
            |m| hydra_times(&m.phase_ms)[0] as f64,
        ),
        (
            "hydraqueuerunner_machine_total_step_import_time_ms",
            Kind::Counter,
            "Of these, sending inputs.",
            |m| hydra_times(&m.phase_ms)[1] as f64,
        ),
        (
            "hydraqueuerunner_machine_total_step_build_time_ms",
            Kind::Counter,
            "Of these, building.",
            |m| hydra_times(&m.phase_ms)[2] as f64,
        ),
        (
            "hydraqueuerunner_machine_total_step_upload_time_ms",
            Kind::Counter,
            "Of these, receiving outputs.",
            |m| hydra_times(&m.phase_ms)[3] as f64,
        ),
    ];
    for (name, kind, help, value) in of_machine {
        page.metric(name, kind, help);
        for machine in machines {
            page.sample(&[("hostname", &machine.name)], value(machine));
        }
    }
    let help = "Seconds that attempts spent in each phase, by machine; of phases that have ended.";
    page.metric("hydrad_phase_seconds_total", Kind::Counter, help);
    for machine in machines {
        for phase in Phase::ALL {
            let secs = machine.phase_ms[phase.index()] as f64 / 1000.0;
            page.sample(&[("machine", &machine.name), ("phase", phase.text())], secs);
        }
    }
}

fn of_jobsets(page: &mut Page, now: &Snapshot) {
    page.metric(
        "hydraqueuerunner_jobset_share_used",
        Kind::Gauge,
        "Machine seconds of the last day for each share, by jobset.",
    );
    for jobset in &now.jobsets {
        page.sample(&[("jobset_name", &jobset.name)], jobset.share_used);
    }
    page.metric(
        "hydraqueuerunner_jobset_seconds",
        Kind::Gauge,
        "Machine seconds of the last day, by jobset.",
    );
    for jobset in &now.jobsets {
        page.sample(&[("jobset_name", &jobset.name)], jobset.seconds as f64);
    }
}
