//! An installation for tests of what goes wrong: database, store, stub builders, hydra.conf and a machines file in
//! one place, and hydrad started on them again and again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::output_of;
use super::{Db, Hydrad, HydradBuilder, NixStore, Pg, RunAs, StubBuilders, TestDir};

/// What every test's hydra.conf begins with: no ports, no polling that could hide a lost wake-up, pauses a test can wait
/// for, and no wish for more room than this host may have.
const CONF: &str = "\
min_free_space = 0
queue_runner_metrics_address = none
status_address = none
queue_poll_interval = 0
retry_interval = 1
max_unsupported_time = 3600
";

/// Counts how often each build ended, and notes a derivation that is busy twice. `finish_log` is the test's own table.
const WATCH: &str = "
create table finish_log (build int not null, status int);
create function log_finish() returns trigger language plpgsql as $$
begin insert into finish_log values (new.id, new.buildStatus); return null; end $$;
create trigger LogFinish after update on Builds
    for each row when (old.finished = 0 and new.finished = 1) execute function log_finish();
create table twice_log (drv text not null);
create function log_twice() returns trigger language plpgsql as $$
begin
    if exists (select 1 from BuildSteps s where s.drvPath = new.drvPath and s.busy <> 0
               and (s.build, s.stepnr) <> (new.build, new.stepnr))
       and exists (select 1 from BuildSteps s
                   where s.build = new.build and s.stepnr = new.stepnr and s.busy <> 0) then
        insert into twice_log values (new.drvPath);
    end if;
    return null;
end $$;
-- At the commit: within a transaction the new row comes before the end of the old one.
create constraint trigger LogTwice after insert on BuildSteps deferrable initially deferred
    for each row when (new.busy <> 0) execute function log_twice();
";

pub struct Site {
    pub db: Db,
    pub store: NixStore,
    pub stubs: StubBuilders,
    dir: TestDir,
}

impl Site {
    /// A new database of this cluster, an empty store, no machines.
    pub fn new(pg: &Pg) -> Site {
        Site::with_db(pg.db())
    }

    /// The same with a database that has Hydra's tables.
    pub fn with_db(db: Db) -> Site {
        let user = RunAs::Unprivileged;
        let site = Site {
            db,
            store: NixStore::owned_by(user),
            stubs: StubBuilders::new(user),
            dir: TestDir::new(user),
        };
        site.db
            .client()
            .batch_execute(WATCH)
            .expect("make the tables of the test");
        // Two programs that both make the store's database are in each other's way.
        site.store.store(&["--init"]);
        site.dir.sub("data", user);
        site.configure("");
        site.machines("");
        site
    }

    /// HYDRA_DATA.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the machines file is.
    pub fn machines_path(&self) -> PathBuf {
        self.dir.join("machines")
    }

    /// Write hydra.conf: these lines after the common ones. (Of a key that comes twice the last counts.)
    pub fn configure(&self, lines: &str) {
        let file = self
            .dir
            .file("hydra.conf", &format!("{CONF}{lines}"), self.user());
        std::fs::rename(file, self.data().join("hydra.conf")).expect("put hydra.conf in its place");
    }

    /// Replace the machines file, as an editor does.
    pub fn machines(&self, text: &str) {
        let file = self.dir.file("machines.new", text, self.user());
        std::fs::rename(file, self.machines_path()).expect("put the machines file in its place");
    }

    /// The line of a machines file for this host, with so many slots.
    pub fn localhost(slots: u32) -> String {
        format!("localhost {} - {slots} 1 - -\n", system())
    }

    /// The line of a stub builder.
    pub fn stub(host: &str, slots: u32, speed: u32, features: &str) -> String {
        format!("{host} {} - {slots} {speed} {features} -\n", system())
    }

    /// Write a line of text into a file of this test that its programs may read and write.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        self.dir.file(name, text, self.user())
    }

    /// A directory its programs may write to.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.sub(name, self.user())
    }

    /// `hydrad ARGS` here.
    pub fn hydrad(&self, args: &[&str]) -> HydradBuilder {
        Hydrad::run(args)
            .db(&self.db)
            .envs(self.stubs.env())
            .store(&self.store)
            .env("HYDRA_DATA", text(&self.data()))
            .env("NIX_REMOTE_SYSTEMS", text(&self.machines_path()))
    }

    /// The queue runner, ready.
    pub fn start(&self) -> Hydrad {
        let mut hydrad = self.hydrad(&["run"]).start();
        hydrad.wait_log("ready: ");
        hydrad
    }

    /// Queue the jobs of a Nix expression; their ids in the order of their names.
    pub fn queue(&self, expression: &str) -> Vec<i32> {
        self.queue_in("manual", expression)
    }

    /// The same in a jobset of the project `manual`.
    pub fn queue_in(&self, jobset: &str, expression: &str) -> Vec<i32> {
        let file = self.file("jobs.nix", expression);
        let args = ["enqueue", "--json", "--jobset", jobset, &text(&file)];
        let answer = output_of(&mut self.hydrad(&args).command());
        let answer: Value = serde_json::from_str(&answer).expect("JSON from enqueue");
        let builds = answer["builds"].as_array().expect("a list of builds");
        builds
            .iter()
            .map(|build| build["id"].as_i64().expect("an id") as i32)
            .collect()
    }

    /// The only row and column of a query.
    pub fn ask<T>(&self, sql: &str) -> T
    where
        T: for<'a> postgres::types::FromSql<'a>,
    {
        self.db
            .client()
            .query_one(sql, &[])
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"))
            .get(0)
    }

    /// The rows of a query as text, columns separated by blanks.
    pub fn rows(&self, sql: &str) -> Vec<String> {
        let answer = self.db.client().simple_query(sql);
        let answer = answer.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let mut rows = Vec::new();
        for message in answer {
            if let postgres::SimpleQueryMessage::Row(row) = message {
                let columns: Vec<&str> = (0..row.len())
                    .map(|n| row.get(n).unwrap_or("NULL"))
                    .collect();
                rows.push(columns.join(" "));
            }
        }
        rows
    }

    /// Wait until all builds have ended.
    pub fn wait_all_finished(&self, hydrad: &mut Hydrad) {
        hydrad.wait_sql(
            &self.db,
            "select not exists (select 1 from Builds where finished = 0)",
        );
    }

    /// What must be true of a queue that is done, whatever happened meanwhile: every build ended exactly once, no step
    /// is busy, none was busy twice at a time, and the rows of what succeeded are complete.
    pub fn assert_complete(&self) {
        for (what, sql) in [
            (
                "builds that are not finished",
                "select id from Builds where finished = 0",
            ),
            (
                "builds that did not end exactly once",
                "select b.id, (select count(*) from finish_log f where f.build = b.id) from Builds b
                 where (select count(*) from finish_log f where f.build = b.id) <> 1",
            ),
            (
                "builds whose status changed after their end",
                "select b.id, b.buildStatus, f.status from Builds b join finish_log f on f.build = b.id
                 where b.buildStatus is distinct from f.status",
            ),
            (
                "steps that are still busy or have no status",
                "select build, stepnr, busy, status from BuildSteps where busy <> 0 or status is null",
            ),
            (
                "derivations with two busy steps at a time",
                "select drv from twice_log",
            ),
            (
                "steps of an attempt that ended without its times",
                "select build, stepnr, status, startTime, stopTime from BuildSteps
                 where status not in (3, 4) and propagatedFrom is null and machine <> ''
                   and (startTime is null or stopTime is null or stopTime < startTime)",
            ),
            (
                "succeeded steps whose outputs have no path",
                "select s.build, s.stepnr from BuildSteps s where s.status = 0 and
                 (not exists (select 1 from BuildStepOutputs o where o.build = s.build and o.stepnr = s.stepnr)
                  or exists (select 1 from BuildStepOutputs o
                             where o.build = s.build and o.stepnr = s.stepnr and o.path is null))",
            ),
            (
                "succeeded builds with incomplete rows",
                "select b.id, b.startTime, b.stopTime, b.size, b.closureSize from Builds b
                 where b.buildStatus in (0, 6) and
                   (b.startTime is null or b.stopTime is null or b.stopTime < b.startTime
                    or b.size is null or b.closureSize is null or b.notificationPendingSince is null
                    or not exists (select 1 from BuildOutputs o where o.build = b.id)
                    or exists (select 1 from BuildOutputs o where o.build = b.id and o.path is null))",
            ),
        ] {
            assert_eq!(self.rows(sql), [""; 0], "{what}");
        }
    }

    fn user(&self) -> RunAs {
        self.store.owner()
    }
}

impl Drop for Site {
    /// What a killed hydrad started ends by itself a moment later; until then it could make the store's folders anew
    /// while they are removed.
    fn drop(&mut self) {
        let store = text(&self.store.store_dir());
        let uses_store = |process: &std::fs::DirEntry| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            environment
                .windows(store.len())
                .any(|part| part == store.as_bytes())
        };
        let give_up = Instant::now() + Duration::from_secs(5);
        while Instant::now() < give_up {
            let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            if !processes.into_iter().any(|process| uses_store(&process)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The platform of this host, in Nix's words.
pub fn system() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// `count` jobs named `PREFIX000`... that only a stub builder can build, with these attributes.
pub fn stub_jobs(prefix: &str, count: usize, attributes: &str) -> String {
    let mut text = String::from("{\n");
    for n in 0..count {
        text.push_str(&format!(
            "  {prefix}{n:03} = derivation {{ name = \"{prefix}{n:03}\"; system = \"{}\"; builder = \"/none\"; \
             {attributes} }};\n",
            system()
        ));
    }
    text + "}\n"
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
