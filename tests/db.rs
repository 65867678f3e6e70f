//! The database room against a real PostgreSQL.
//!
//! One private cluster per test binary, sockets only, and one database per test, copied from a
//! template that has the tables. Server programs: `$PG_BIN`, else as `--state` finds them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use hydrad::admin::check::{self, CheckArgs, CheckInput, Mark};
use hydrad::admin::init::{self, InitArgs, InitError};
use hydrad::config::machines::LocalHost;
use hydrad::config::settings::Service;
use hydrad::config::Settings;
use hydrad::db::connect::{refuse_two_databases, DbTarget};
use hydrad::db::embedded::{find_binaries, Binaries, Embedded};
use hydrad::db::error::DbError;
use hydrad::db::listen::Listener;
use hydrad::db::locks::{self, ServiceLock, Taken};
use hydrad::db::os_user;
use hydrad::db::pool::Pool;
use hydrad::db::schema::{self, HydradState, NewVersion, SchemaState};
use postgres::Client;

const APP: &str = "hydrad-test";
/// How long anything that should happen at once may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster of this test binary.
struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    fn get() -> &'static Cluster {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            remove_leftovers();
            let (ready, wait) = mpsc::channel();
            // The server dies with the thread that started it, so that thread must stay.
            thread::spawn(move || {
                let (cluster, mut server) = Cluster::start();
                ready.send(cluster).unwrap();
                server.wait().unwrap();
            });
            wait.recv().expect("the cluster starts")
        })
    }

    fn start() -> (Cluster, Child) {
        let binaries = find_binaries();
        let bin = &binaries
            .first()
            .expect("PostgreSQL server programs; install postgresql or set PG_BIN")
            .dir;
        let dir = PathBuf::from(format!("/tmp/hydrad-test-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let user = match os_user::effective_uid() {
            0 => os_user::by_name("postgres").or_else(|| os_user::by_name("nobody")),
            _ => os_user::current(),
        }
        .unwrap();
        let own = |path: &Path| {
            if os_user::effective_uid() == 0 {
                std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
            }
        };
        own(&dir);
        let command = |program: &str| {
            let mut command = Command::new(bin.join(program));
            command.env_clear().current_dir("/").stdin(Stdio::null());
            if os_user::effective_uid() == 0 {
                command.uid(user.uid).gid(user.gid);
            }
            command
        };
        let data = dir.join("data");
        let made = command("initdb")
            .arg("-D")
            .arg(&data)
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--no-locale",
            ])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let rules = "local secret all scram-sha-256\nlocal all all trust\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut server = command("postgres");
        server
            .arg("-D")
            .arg(&data)
            .arg("-F")
            .arg("-k")
            .arg(&dir)
            .args(["-c", "listen_addresses=", "-c", "full_page_writes=off"])
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            server.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT);
                Ok(())
            });
        }
        let child = server.spawn().unwrap();
        let cluster = Cluster { dir };
        let admin = cluster.admin("postgres");
        let mut client = eventually(|| admin.connect(APP).ok());
        client.batch_execute("create role hydra login").unwrap();
        client
            .batch_execute("create database tmpl owner hydra")
            .unwrap();
        let mut owner = cluster.target("tmpl").connect(APP).unwrap();
        let done = schema::init(&mut owner, NewVersion::V87).unwrap();
        assert_eq!(done.created, Some(87));
        assert!(done.created_hydrad);
        drop(owner);
        (cluster, child)
    }

    fn admin(&self, dbname: &str) -> DbTarget {
        DbTarget::socket(&self.dir, 5432, dbname, "postgres", "test")
    }

    fn target(&self, dbname: &str) -> DbTarget {
        DbTarget::socket(&self.dir, 5432, dbname, "hydra", "test")
    }

    fn create(&self, template: &str) -> DbTarget {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut client = self.admin("postgres").connect(APP).unwrap();
        // The session that last used the template may still be closing.
        eventually(|| {
            client
                .batch_execute(&format!(
                    "create database {name} owner hydra template {template}"
                ))
                .ok()
        });
        self.target(&name)
    }
}

/// A database with tables at 87.
fn database() -> DbTarget {
    Cluster::get().create("tmpl")
}

/// A database without tables.
fn empty_database() -> DbTarget {
    Cluster::get().create("template0")
}

/// Waits for a state, never for a time.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it did not happen");
        thread::yield_now();
    }
}

/// Clusters of test runs that are over.
fn remove_leftovers() {
    for entry in fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix("hydrad-test-") {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

fn no_env(_: &str) -> Option<String> {
    None
}

/// (table, column, type, not null) of Hydra's tables.
fn columns(client: &mut Client) -> BTreeSet<(String, String, String, bool)> {
    let sql = "select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull
                 from pg_class c join pg_attribute a on a.attrelid = c.oid
                where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
                  and a.attnum > 0 and not a.attisdropped";
    let rows = client.query(sql, &[]).unwrap();
    rows.iter()
        .map(|r| (r.get(0), r.get(1), r.get(2), r.get(3)))
        .collect()
}

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

const USER_AND_JOBSETS: &str = "
    insert into Users (userName, emailAddress, password) values ('u', '', '!');
    insert into Projects (name, displayName, owner) values ('p', 'P', 'u');
    insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath)
        values ('j', 'p', '', 'src', 'default.nix'), ('k', 'p', '', 'src', 'default.nix');
    insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system)
        values (1, 0, 1, 1, 'a', '/nix/store/a.drv', 'x'), (2, 0, 1, 1, 'b', '/nix/store/b.drv', 'x'),
               (3, 0, 1, 1, 'c', '/nix/store/c.drv', 'x');";

#[test]
fn a_new_schema_has_what_hydra_has_and_init_can_be_repeated() {
    let target = database();
    let mut client = target.connect(APP).unwrap();
    let ours = "relnamespace = 'public'::regnamespace";
    let tables = format!("select count(*) from pg_class where {ours} and relkind = 'r'");
    let indexes = format!("select count(*) from pg_class where {ours} and relkind = 'i'");
    assert_eq!(count(&mut client, &tables), 36);
    assert_eq!(count(&mut client, &indexes), 74);
    let triggers = "select count(*) from pg_trigger where not tgisinternal";
    assert_eq!(count(&mut client, triggers), 9);
    let found = schema::check_schema(&mut client).unwrap();
    assert_eq!(found.state, SchemaState::Served { version: 87 });
    assert_eq!(found.hydrad, HydradState::At(schema::HYDRAD_VERSION));
    assert!(found.features.nullable_output_paths);
    assert!(found.features.drv_path_required);
    assert!(found.features.resolved_drv_path);
    assert_eq!(found.serve().unwrap(), Vec::<String>::new());
    assert_eq!(
        schema::missing_rights(&mut client).unwrap(),
        Vec::<String>::new()
    );
    let again = schema::init(&mut client, NewVersion::V85).unwrap();
    assert_eq!(
        (again.created, again.created_hydrad, again.version),
        (None, false, 87)
    );
}

#[test]
fn schema_85_is_for_older_web_servers() {
    let mut client = empty_database().connect(APP).unwrap();
    let empty = schema::check_schema(&mut client).unwrap();
    assert_eq!(empty.state, SchemaState::Empty);
    assert!(empty
        .serve()
        .unwrap_err()
        .to_string()
        .contains("hydrad init"));
    schema::init(&mut client, NewVersion::V85).unwrap();
    let found = schema::check_schema(&mut client).unwrap();
    assert_eq!(found.state, SchemaState::Served { version: 85 });
    assert!(found.features.nullable_output_paths);
    assert!(!found.features.drv_path_required);
    assert!(!found.features.resolved_drv_path);
    found.serve().unwrap();
    client.batch_execute(USER_AND_JOBSETS).unwrap();
    // A substitution as the C++ queue runner records it.
    client
        .batch_execute("insert into BuildSteps (build, stepnr, type, busy) values (1, 1, 1, 0)")
        .unwrap();
}

#[test]
fn an_upgrade_from_82_ends_where_a_new_schema_begins() {
    let target = empty_database();
    let mut client = target.connect(APP).unwrap();
    schema::init(&mut client, NewVersion::V85).unwrap();
    client
        .batch_execute(
            "alter table JobsetEvalInputs drop column shortRevLength;
             alter table BuildOutputs alter column path set not null;
             alter table BuildStepOutputs alter column path set not null;
             create index IndexBuildOutputsOnPath on BuildOutputs (path);
             update SchemaVersion set version = 82;",
        )
        .unwrap();
    client.batch_execute(USER_AND_JOBSETS).unwrap();
    client
        .batch_execute("insert into BuildSteps (build, stepnr, type, busy) values (1, 1, 1, 0)")
        .unwrap();
    let found = schema::check_schema(&mut client).unwrap();
    assert_eq!(found.state, SchemaState::Served { version: 82 });
    assert!(!found.features.nullable_output_paths);

    let args = |yes| InitArgs {
        schema: "87".to_owned(),
        upgrade_to: Some(87),
        yes,
        json: true,
    };
    let mut out = Vec::new();
    let mut asked = String::new();
    let refused = init::run_asking(&args(false), &target, &mut out, &mut |plan| {
        asked = plan.to_string();
        Err(InitError::NotConfirmed)
    });
    assert!(matches!(refused, Err(InitError::NotConfirmed)));
    assert!(
        asked.contains("older programs: Hydra's C++ queue runner"),
        "{asked}"
    );
    let found = schema::check_schema(&mut client).unwrap();
    assert_eq!(found.state, SchemaState::Served { version: 82 });

    init::run(&args(true), &target, &mut out).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        (&said["upgraded_from"], &said["version"]),
        (&82.into(), &87.into())
    );
    let mut fresh = database().connect(APP).unwrap();
    assert_eq!(columns(&mut client), columns(&mut fresh));
    let old_index = "select count(*) from pg_class where relname = 'indexbuildoutputsonpath'";
    assert_eq!(count(&mut client, old_index), 0);
    let plan = schema::plan_upgrade(&mut client, 87).unwrap();
    assert_eq!(plan.steps, []);
    assert!(
        schema::plan_upgrade(&mut client, 85).is_err(),
        "no way back"
    );
    assert!(schema::plan_upgrade(&mut client, 88).is_err());
}

#[test]
fn an_upgrade_gives_up_when_others_use_the_tables() {
    let target = empty_database();
    let mut client = target.connect(APP).unwrap();
    schema::init(&mut client, NewVersion::V85).unwrap();
    let plan = schema::plan_upgrade(&mut client, 86).unwrap();
    let mut other = target.connect(APP).unwrap();
    let mut reading = other.transaction().unwrap();
    reading.query("select 1 from BuildSteps", &[]).unwrap();
    let error = schema::upgrade(&mut client, &plan, &mut |_| ()).unwrap_err();
    assert!(
        error.to_string().contains("other programs use the tables"),
        "{error}"
    );
    reading.rollback().unwrap();
    // The step that failed changed nothing, so it can be repeated.
    schema::upgrade(&mut client, &plan, &mut |_| ()).unwrap();
}

#[test]
fn other_versions_are_served_or_refused_by_name() {
    let mut client = database().connect(APP).unwrap();
    let mut set = |sql: &str| {
        client.batch_execute(sql).unwrap();
        schema::check_schema(&mut client).unwrap()
    };
    let newer = set("update SchemaVersion set version = 99");
    assert_eq!(newer.serve().unwrap().len(), 1, "a warning");
    let lacking = set("alter table BuildSteps drop column overhead");
    let error = lacking.serve().unwrap_err().to_string();
    assert!(error.contains("buildsteps.overhead"), "{error}");
    let damaged = set("update SchemaVersion set version = 87");
    let error = damaged.serve().unwrap_err().to_string();
    assert!(error.contains("lack buildsteps.overhead"), "{error}");
    let older = set("update SchemaVersion set version = 60");
    let error = older.serve().unwrap_err().to_string();
    assert!(
        error.contains("hydra-init") && error.contains("hydra-backfill-ids"),
        "{error}"
    );
    let two = set("insert into SchemaVersion values (87)");
    assert!(two.serve().unwrap_err().to_string().contains("2 rows"));
    let foreign = set("drop table SchemaVersion");
    let error = foreign.serve().unwrap_err().to_string();
    assert!(error.contains("another program's database"), "{error}");
    let error = schema::init(&mut client, NewVersion::V87).unwrap_err();
    assert!(error.to_string().contains("another program's database"));
}

#[test]
fn triggers_announce_exactly_what_hydra_announces() {
    let target = database();
    let mut client = target.connect(APP).unwrap();
    let channels = [
        "jobsets_added",
        "jobsets_deleted",
        "jobset_scheduling_changed",
        "jobset_shares_changed",
        "builds_deleted",
        "builds_restarted",
        "builds_cancelled",
        "builds_bumped",
        "builds_added",
        "end",
    ];
    let mut listener = Listener::connect(&target, APP, &channels).unwrap();
    let mut heard = |client: &mut Client, sql: &str| -> Vec<String> {
        client.batch_execute(sql).unwrap();
        client.batch_execute("notify \"end\"").unwrap();
        let mut heard = Vec::new();
        loop {
            let n = listener.next(PATIENCE).unwrap().expect("the end");
            assert_eq!(n.payload, "");
            if n.channel == "end" {
                return heard;
            }
            heard.push(n.channel);
        }
    };
    let finish = "finished = 1, startTime = 1, stopTime = 1";
    for (sql, expected) in [
        (USER_AND_JOBSETS, vec!["jobsets_added"]),
        (
            "update Jobsets set triggerTime = 5 where id = 1",
            vec!["jobset_scheduling_changed"],
        ),
        ("update Jobsets set triggerTime = 5 where id = 1", vec![]),
        ("update Jobsets set triggerTime = null where id = 1", vec![]),
        (
            "update Jobsets set startTime = 1, lastCheckedTime = 2 where id = 1",
            vec![],
        ),
        (
            "update Jobsets set checkInterval = 7 where id = 1",
            vec!["jobset_scheduling_changed"],
        ),
        (
            "update Jobsets set enabled = 0 where id = 1",
            vec!["jobset_scheduling_changed"],
        ),
        (
            "update Jobsets set schedulingShares = 7 where id = 1",
            vec!["jobset_shares_changed"],
        ),
        (
            "update Builds set globalPriority = 9 where id = 1",
            vec!["builds_bumped"],
        ),
        (
            &format!("update Builds set {finish}, buildStatus = 0 where id = 1"),
            vec![],
        ),
        (
            &format!("update Builds set {finish}, buildStatus = 4 where id = 2"),
            vec!["builds_cancelled"],
        ),
        (
            "update Builds set finished = 0 where id = 1",
            vec!["builds_restarted"],
        ),
        ("delete from Builds where id = 3", vec!["builds_deleted"]),
        ("delete from Builds where id = 333", vec!["builds_deleted"]),
        (
            "delete from Jobsets where id = 333",
            vec!["jobsets_deleted"],
        ),
    ] {
        assert_eq!(heard(&mut client, sql), expected, "{sql}");
    }
    let finished = "select count::bigint from NrBuilds where what = 'finished'";
    assert_eq!(count(&mut client, finished), 1);
    let deleted: BTreeSet<String> = heard(&mut client, "delete from Projects")
        .into_iter()
        .collect();
    assert!(deleted.contains("jobsets_deleted") && deleted.contains("builds_deleted"));
    assert_eq!(count(&mut client, finished), 0);
    // The rule on FailedPaths.
    for _ in 0..2 {
        client
            .batch_execute("insert into FailedPaths values ('/nix/store/x')")
            .unwrap();
    }
    assert_eq!(count(&mut client, "select count(*) from FailedPaths"), 1);
}

#[test]
fn listeners_hear_in_order_and_notice_the_end() {
    let target = database();
    let mut listener = Listener::connect(&target, "listening", &["one", "Two \"quoted\""]).unwrap();
    assert_eq!(listener.next(Duration::ZERO).unwrap(), None);
    let mut client = target.connect(APP).unwrap();
    for i in 0..500 {
        let channel = if i % 2 == 0 { "one" } else { "Two \"quoted\"" };
        client
            .execute("select pg_notify($1, $2)", &[&channel, &i.to_string()])
            .unwrap();
    }
    for i in 0..500 {
        let n = listener.next(PATIENCE).unwrap().expect("a notification");
        assert_eq!(n.payload, i.to_string());
    }
    listener.check().unwrap();
    client
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'listening'", &[])
        .unwrap();
    let error = listener.next(PATIENCE).unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert!(listener.check().is_err());
}

#[test]
fn the_pool_never_exceeds_its_cap() {
    let target = database();
    let pool = Pool::new(target, 4, "capped");
    let most = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let mut conn = pool.get(PATIENCE).unwrap();
                    let count = "select count(*)::int from pg_stat_activity where application_name = 'capped'";
                    let mut transaction = conn.transaction().unwrap();
                    let n: i32 = transaction.query(count, &[]).unwrap()[0].get(0);
                    transaction.commit().unwrap();
                    most.fetch_max(n as u32, Ordering::Relaxed);
                }
            });
        }
    });
    let most = most.into_inner();
    assert!((1..=4).contains(&most), "{most}");
    let metrics = pool.metrics();
    assert_eq!((metrics.max, metrics.in_use), (4, 0));
    assert!(metrics.waits_total > 0 && metrics.idle <= 4);

    let held: Vec<_> = (0..4).map(|_| pool.get(PATIENCE).unwrap()).collect();
    let error = pool
        .get(Duration::from_millis(10))
        .err()
        .expect("none is free");
    assert!(matches!(error, DbError::PoolBusy { max: 4, .. }), "{error}");
    drop(held);
    pool.get(PATIENCE).unwrap();
}

#[test]
fn the_pool_recovers_from_lost_connections() {
    let target = database();
    let pool = Pool::new(target.clone(), 3, "mortal");
    {
        let mut conn = pool.get(PATIENCE).unwrap();
        conn.client().batch_execute("select 1").unwrap();
        let mut killer = target.connect(APP).unwrap();
        killer
            .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'mortal'", &[])
            .unwrap();
        let error = eventually(|| conn.transaction().err());
        assert!(error.is_lost() && !error.is_retryable(), "{error}");
    }
    // Other idle connections may be dead as well: each is an error once, never twice.
    let mut failures = 0;
    eventually(|| {
        let mut conn = pool.get(PATIENCE).unwrap();
        let sql = "select 1";
        let result = conn.query(sql, &[]);
        match result {
            Ok(_) => Some(()),
            Err(e) => {
                assert!(e.is_lost(), "{e}");
                failures += 1;
                assert!(failures <= 3);
                None
            }
        }
    });
    assert!(pool.metrics().broken_total >= 1);
}

#[test]
fn an_absent_server_is_lost_and_says_where() {
    let nowhere = DbTarget::socket(Path::new("/nonexistent"), 5432, "d", "u", "test");
    let error = nowhere.connect(APP).err().unwrap();
    assert!(error.is_lost());
    let text = error.to_string();
    assert!(text.contains("/nonexistent/.s.PGSQL.5432"), "{text}");
    let pool = Pool::new(nowhere, 2, APP);
    let error = eventually(|| match pool.get(Duration::from_millis(100)) {
        Err(e @ DbError::PoolUnreachable { .. }) => Some(e),
        Err(_) => None,
        Ok(_) => panic!("there is no server"),
    });
    assert!(
        error.is_lost() && error.to_string().contains("/nonexistent"),
        "{error}"
    );
    let missing = Cluster::get()
        .target("no_such_database")
        .connect(APP)
        .err()
        .unwrap();
    assert!(!missing.is_lost());
    assert!(missing.to_string().contains("createdb"), "{missing}");
}

#[test]
fn lost_races_are_retryable() {
    let target = database();
    let mut one = target.connect(APP).unwrap();
    one.batch_execute(USER_AND_JOBSETS).unwrap();
    let mut holder = one.transaction().unwrap();
    holder
        .batch_execute("update Builds set keep = 1 where id = 1")
        .unwrap();
    let mut two = target.connect(APP).unwrap();
    two.batch_execute("set lock_timeout = '10ms'").unwrap();
    let error: DbError = two
        .batch_execute("update Builds set keep = 1 where id = 1")
        .unwrap_err()
        .into();
    assert!(error.is_retryable() && !error.is_lost(), "{error}");
    assert_eq!(error.sql_state(), Some("55P03"));
    let error: DbError = two.batch_execute("select nonsense").unwrap_err().into();
    assert!(!error.is_retryable() && !error.is_lost());
    assert!(error.to_string().contains("nonsense"), "{error}");
}

#[test]
fn a_service_lock_has_one_holder_with_a_name() {
    let target = database();
    let take = |service| ServiceLock::try_take(&target, service, "holder").unwrap();
    let Taken::Yes(mut lock) = take(Service::QueueRunner) else {
        panic!("the lock is free");
    };
    lock.check().unwrap();
    let Taken::HeldBy(holders) = take(Service::QueueRunner) else {
        panic!("the lock is held");
    };
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0].application_name, "holder");
    assert!(holders[0].to_string().contains("user hydra"));
    assert!(matches!(take(Service::Evaluator), Taken::Yes(_)));
    // Another farm on the same server.
    let other = database();
    let elsewhere = ServiceLock::try_take(&other, Service::QueueRunner, "holder").unwrap();
    assert!(matches!(elsewhere, Taken::Yes(_)));

    let mut client = target.connect(APP).unwrap();
    client
        .execute("select pg_terminate_backend($1)", &[&holders[0].pid])
        .unwrap();
    let error = eventually(|| lock.check().err());
    assert!(
        error.is_lost() && error.to_string().contains("queue-runner"),
        "{error}"
    );
    let again = eventually(|| match take(Service::QueueRunner) {
        Taken::Yes(lock) => Some(lock),
        Taken::HeldBy(_) => None,
    });
    drop(again);

    assert_eq!(
        locks::foreign_sessions(&mut client, Service::QueueRunner).unwrap(),
        []
    );
    let _theirs = target.connect("hydra-queue-runner").unwrap();
    let found = locks::foreign_sessions(&mut client, Service::QueueRunner).unwrap();
    assert_eq!(found.len(), 1);
}

#[test]
fn a_direct_connection_is_no_transaction_pooler() {
    locks::refuse_transaction_pooler(&database()).unwrap();
}

#[test]
fn password_files_are_read_as_libpq_reads_them() {
    let cluster = Cluster::get();
    let mut admin = cluster.admin("postgres").connect(APP).unwrap();
    admin
        .batch_execute("create role keyed login password 'a:b\\c d'")
        .unwrap();
    admin
        .batch_execute("create database secret owner keyed")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let passfile = dir.path().join("pgpass");
    let host = cluster.dir.display().to_string();
    let text = format!(
        "# comment\nbroken line\n*:*:*:other:no\n{host}:5433:*:*:no\n{host}:*:secret:keyed:a\\:b\\\\c d\n*:*:*:*:no\n"
    );
    fs::write(&passfile, text).unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let passfile_text = passfile.display().to_string();
    let env = |name: &str| match name {
        "HYDRA_DBI" => Some(format!("dbi:Pg:dbname=secret;host={host};user=keyed;")),
        "PGPASSFILE" => Some(passfile_text.clone()),
        _ => None,
    };
    let target = DbTarget::from_parts(&env, None).unwrap();
    target.connect(APP).unwrap();
    assert!(!format!("{target:?}{:?}", target.rows()).contains("a:b"));
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
    let error = target.connect(APP).err().expect("no password").to_string();
    assert!(
        error.contains("missing") || error.contains("password"),
        "{error}"
    );
    let target = DbTarget::from_parts(&env, None).unwrap();
    assert!(
        target.remarks()[0].contains("chmod 600"),
        "{:?}",
        target.remarks()
    );
    let with = |name: &str| match name {
        "PGPASSWORD" => Some("a:b\\c d".to_owned()),
        other => env(other),
    };
    let target = DbTarget::from_parts(&with, None).unwrap();
    target.connect(APP).unwrap();
    assert!(!format!("{target:?}{:?}", target.rows()).contains("a:b"));
    let wrong = |name: &str| match name {
        "PGPASSWORD" => Some("wrong".to_owned()),
        other => env(other),
    };
    let error = DbTarget::from_parts(&wrong, None)
        .unwrap()
        .connect(APP)
        .err()
        .unwrap();
    assert!(
        !error.is_lost() && error.to_string().contains("PGPASSFILE"),
        "{error}"
    );
}

#[test]
fn targets_come_from_where_libpq_and_hydra_would_take_them() {
    let parse = |pairs: &[(&str, &str)], conf: Option<&str>| {
        let env = |name: &str| {
            let found = pairs.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| (*v).to_owned())
        };
        let conf = conf.map(|c| (c, "hydra.conf:3".to_owned()));
        DbTarget::from_parts(&env, conf).map(|t| t.describe())
    };
    let me = os_user::current().unwrap().name;
    for (pairs, conf, expected) in [
        (vec![("HYDRA_DBI", "dbi:Pg:dbname=a;host=h;user=u;")], None,
         "server h:5432 (HYDRA_DBI), database a (HYDRA_DBI), user u (HYDRA_DBI)".to_owned()),
        (vec![("HYDRA_DBI", "DBI:Pg:database=a;host=h;port=7;user='x y';application_name=z")], None,
         "server h:7 (HYDRA_DBI), database a (HYDRA_DBI), user x y (HYDRA_DBI)".to_owned()),
        (vec![("HYDRA_DATABASE_URL", "postgres://u:p%40w@%2Frun%2Fpg:5433/d?application_name=x")], None,
         "server /run/pg/.s.PGSQL.5433 (HYDRA_DATABASE_URL), database d (HYDRA_DATABASE_URL), user u (HYDRA_DATABASE_URL)".to_owned()),
        (vec![("HYDRA_DATABASE_URL", "postgresql://[::1]:7,two/d"), ("PGUSER", "u")], None,
         "server [::1]:7 or two:5432 (HYDRA_DATABASE_URL), database d (HYDRA_DATABASE_URL), user u (PGUSER)".to_owned()),
        (vec![("PGHOST", "h"), ("PGPORT", "9"), ("PGDATABASE", "d")], None,
         format!("server h:9 (PGHOST), database d (PGDATABASE), user {me} (the user hydrad runs as)")),
        (vec![("PGHOST", "h")], None,
         format!("server h:5432 (PGHOST), database hydra (default), user {me} (the user hydrad runs as)")),
        (vec![("PGHOST", "h"), ("PGUSER", "u")], Some("dbi:Pg:dbname=c"),
         "server h:5432 (PGHOST), database c (hydra.conf:3), user u (PGUSER)".to_owned()),
        (vec![("HYDRA_DBI", "dbi:Pg:dbname=a;host=h;user=u")], Some("dbi:Pg:dbname=c"),
         "server h:5432 (HYDRA_DBI), database a (HYDRA_DBI), user u (HYDRA_DBI)".to_owned()),
    ] {
        assert_eq!(parse(&pairs, conf).unwrap(), expected, "{pairs:?}");
    }
    for (pairs, expected) in [
        (
            vec![("HYDRA_DBI", "dbi:pg:dbname=a")],
            "HYDRA_DBI: does not denote a PostgreSQL database",
        ),
        (
            vec![("HYDRA_DBI", "dbi:Pg:dbname")],
            "HYDRA_DBI: no `=` after `dbname`",
        ),
        (
            vec![("HYDRA_DBI", "dbi:Pg:password=two words")],
            "HYDRA_DBI: a word without `=`",
        ),
        (vec![("HYDRA_DBI", "dbi:Pg:dbname='a")], "is not closed"),
        (
            vec![("HYDRA_DBI", "dbi:Pg:colour=red")],
            "`colour` is not a connection parameter",
        ),
        (
            vec![("HYDRA_DBI", "dbi:Pg:port=x")],
            "port=x: expected a number",
        ),
        (
            vec![("HYDRA_DATABASE_URL", "mysql://x/y")],
            "HYDRA_DATABASE_URL: does not denote",
        ),
        (
            vec![("HYDRA_DATABASE_URL", "postgres://%zz/y")],
            "two hexadecimal digits",
        ),
        (
            vec![("PGSERVICE", "x")],
            "PGSERVICE: service files (`x`) are not supported",
        ),
        (
            vec![("PGSSLMODE", "verify-full")],
            "PGSSLMODE: sslmode=verify-full needs a file with the certificate",
        ),
        (
            vec![("HYDRA_DBI", "dbi:Pg:host=a,b;port=1,2,3")],
            "2 hosts but 3 ports",
        ),
    ] {
        let error = parse(&pairs, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{pairs:?}: {error}");
    }
}

/// A folder that an ordinary user may pass through, as an administrator would make it.
fn state_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("hs")
        .tempdir_in("/tmp")
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn embedded_starts_restarts_and_is_adopted() {
    let parent = state_dir();
    // Made by hydrad; a left-over of an interrupted start does not matter.
    let dir = parent.path().join("state");
    fs::create_dir_all(dir.join("postgres.tmp/base")).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Embedded::running(&dir).unwrap().is_none());

    let first = Embedded::start(&dir).unwrap();
    assert!(!first.adopted() && !dir.join("postgres.tmp").exists());
    let mut client = first.target().connect(APP).unwrap();
    let done = schema::init(&mut client, NewVersion::V87).unwrap();
    assert_eq!(done.created, Some(87));
    let who = "select current_user || ' ' || current_setting('fsync') || ' ' || current_setting('listen_addresses')";
    let text: String = client.query_one(who, &[]).unwrap().get(0);
    assert_eq!(text, "hydra on ");
    let data = fs::metadata(dir.join("postgres")).unwrap();
    assert_eq!(data.mode() & 0o777, 0o700);
    assert_ne!(data.uid(), 0);
    assert_eq!(fs::metadata(&dir).unwrap().uid(), os_user::effective_uid());
    let second = Embedded::start(&dir).err().expect("it is looked after");
    assert!(second.to_string().contains("another hydrad"), "{second}");
    assert!(Embedded::running(&dir).unwrap().is_some());
    first.stop().unwrap();
    assert!(Embedded::running(&dir).unwrap().is_none());

    // Started again, and lost as by SIGKILL: nothing is dropped, the lock is gone with its file.
    let again = Embedded::start(&dir).unwrap();
    let mut client = again.target().connect(APP).unwrap();
    let found = schema::check_schema(&mut client).unwrap();
    assert_eq!(found.state, SchemaState::Served { version: 87 });
    let pid = again.pid();
    std::mem::forget(again);
    fs::remove_file(dir.join("postgres.lock")).unwrap();
    let adopted = Embedded::start(&dir).unwrap();
    assert!(adopted.adopted());
    assert_eq!(adopted.pid(), pid);
    client.query("select 1", &[]).unwrap();
    adopted.stop().unwrap();
    assert!(Embedded::running(&dir).unwrap().is_none());

    // A number in postmaster.pid that meanwhile belongs to somebody else does no harm.
    let stale = format!(
        "{}\n{}\n",
        std::process::id(),
        dir.join("postgres").display()
    );
    fs::write(dir.join("postgres/postmaster.pid"), stale).unwrap();
    let after_reboot = Embedded::start(&dir).unwrap();
    assert!(!after_reboot.adopted());
    after_reboot.stop().unwrap();

    // Another version's cluster is explained, not touched.
    fs::write(dir.join("postgres/PG_VERSION"), "9.6\n").unwrap();
    let error = Embedded::start(&dir).err().unwrap().to_string();
    for expected in ["made by PostgreSQL 9", "PG_BIN", "pg_upgrade", "found: "] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn embedded_with_a_long_path_has_a_short_socket() {
    let parent = state_dir();
    let dir = parent
        .path()
        .join("d".repeat(100))
        .join("with blank, comma");
    fs::create_dir_all(&dir).unwrap();
    let embedded = Embedded::start(&dir).unwrap();
    embedded.target().connect(APP).unwrap();
    let record = fs::read_to_string(dir.join("postgres.socket-dir")).unwrap();
    let short = PathBuf::from(&record);
    assert!(record.len() < 60);
    assert_eq!(fs::metadata(&short).unwrap().mode() & 0o777, 0o700);
    embedded.stop().unwrap();
    assert!(!short.exists());
    // The record is gone or stale; either way the next start works.
    Embedded::start(&dir).unwrap().stop().unwrap();
}

#[test]
fn embedded_in_a_closed_folder_opens_just_that_one() {
    let parent = state_dir();
    let dir = parent.path().join("closed");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let embedded = Embedded::start(&dir).unwrap();
    embedded.target().connect(APP).unwrap();
    let root = os_user::effective_uid() == 0;
    let mode = fs::metadata(&dir).unwrap().mode() & 0o777;
    assert_eq!(mode, if root { 0o701 } else { 0o700 });
    embedded.stop().unwrap();
    if root {
        // Above it is somebody else's business.
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let error = Embedded::start(&dir).err().unwrap().to_string();
        assert!(error.contains("cannot pass through"), "{error}");
    }
}

#[test]
fn embedded_runs_as_the_owner_of_its_folder() {
    let parent = state_dir();
    let dir = parent.path().join("owned");
    fs::create_dir(&dir).unwrap();
    let nobody = os_user::by_name("nobody").unwrap();
    if os_user::effective_uid() == 0 {
        std::os::unix::fs::chown(&dir, Some(nobody.uid), Some(nobody.gid)).unwrap();
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let embedded = Embedded::start(&dir).unwrap();
    let owner = fs::metadata(&dir).unwrap().uid();
    assert_eq!(fs::metadata(dir.join("postgres")).unwrap().uid(), owner);
    let server = format!("/proc/{}", embedded.pid().unwrap());
    assert_eq!(fs::metadata(server).unwrap().uid(), owner);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    embedded.stop().unwrap();
}

#[test]
fn embedded_without_programs_says_what_to_install() {
    let dir = state_dir();
    let error = Embedded::start_with(dir.path(), &[])
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("PG_BIN") && error.contains("install"),
        "{error}"
    );
    let broken = Binaries {
        dir: PathBuf::from("/nonexistent"),
        major: 15,
    };
    let error = Embedded::start_with(dir.path(), &[broken])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cannot run /nonexistent/initdb"), "{error}");
}

#[test]
fn two_databases_are_refused() {
    let settings = Settings::load(&no_env, &[]).unwrap();
    refuse_two_databases(&no_env, &settings).unwrap();
    let env = |name: &str| (name == "PGHOST").then(|| "h".to_owned());
    let error = refuse_two_databases(&env, &settings)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("PGHOST") && error.contains("--state"),
        "{error}"
    );
}

#[test]
fn check_reports_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let conf = format!("gc_roots_dir = {data}/roots\nssh_program = true\nnix_store_program = true\nnix_daemon_program = true\n");
    fs::write(dir.path().join("hydra.conf"), conf).unwrap();
    let env = |name: &str| match name {
        "HYDRA_DATA" => Some(data.clone()),
        "PATH" => Some("/usr/bin:/bin".to_owned()),
        _ => None,
    };
    let check = |target: DbTarget| {
        let input = CheckInput {
            env: &env,
            overrides: &[],
            target: Some(target),
            local: LocalHost::of_this_host(Some(1), Vec::new()),
            machines_path: Path::new("/nonexistent"),
            store_rows: &Vec::new,
        };
        let mut out = Vec::new();
        let code = check::run(&CheckArgs { json: true }, &input, &mut out, false).unwrap();
        let said: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(said["exit_code"], code);
        let mut text = Vec::new();
        check::run(&CheckArgs::default(), &input, &mut text, false).unwrap();
        assert!(!text.contains(&0x1b));
        (code, check::rows(&input))
    };
    let (code, rows) = check(database());
    let bad: Vec<_> = rows
        .iter()
        .filter(|r| matches!(r.mark, Mark::Problem | Mark::Unknown))
        .collect();
    assert_eq!(code, 0, "{bad:#?}");
    assert!(rows.iter().any(|r| r.what == "localhost"));

    let empty = empty_database();
    let (code, rows) = check(empty.clone());
    assert_eq!(code, 1);
    assert!(rows
        .iter()
        .any(|r| r.mark == Mark::Problem && r.note.contains("hydrad init")));
    let mut client = empty.connect(APP).unwrap();
    assert_eq!(
        schema::check_schema(&mut client).unwrap().state,
        SchemaState::Empty
    );

    let nowhere = DbTarget::socket(Path::new("/nonexistent"), 5432, "d", "u", "test");
    assert_eq!(check(nowhere).0, 2);

    // Somebody who may read but not write.
    let target = database();
    let mut admin = Cluster::get().admin(target.dbname()).connect(APP).unwrap();
    admin
        .batch_execute(
            "create role reader login; grant usage on schema hydrad to reader;
             grant select on all tables in schema public, hydrad to reader",
        )
        .unwrap();
    let reader = DbTarget::socket(&Cluster::get().dir, 5432, target.dbname(), "reader", "test");
    let (code, rows) = check(reader);
    assert_eq!(code, 1);
    let rights = rows.iter().find(|r| r.what == "rights").unwrap();
    assert!(rights.value.contains("UPDATE on builds"), "{rights:?}");
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "only hydra.conf: {files:?}");
}
