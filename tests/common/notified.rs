//! A place for a notifier to work at: a database with a job set whose builds a test ends by hand, and a folder with a hydra.conf.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex};

use postgres::{Client, GenericClient};

use super::{Db, Hydrad, HydradBuilder, Pg, RunAs, TestDir, Told};

/// A database with a job set, and a folder with a hydra.conf.
pub struct Place {
    pub db: Db,
    pub dir: TestDir,
}

impl Place {
    pub fn new(conf: &str) -> Place {
        let db = Pg::shared().db();
        db.client()
            .batch_execute(
                "insert into Users (userName, emailAddress, password) values ('u', '', '!');
                 insert into Projects (name, displayName, owner) values ('p', 'P', 'u');
                 insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath) values ('s', 'p', '', 'i', 'f')",
            )
            .expect("a job set");
        let dir = TestDir::new(RunAs::Unprivileged);
        dir.file("hydra.conf", conf, RunAs::Unprivileged);
        Place { db, dir }
    }

    pub fn client(&self) -> Client {
        self.db.client()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        self.dir.file(name, text, RunAs::Unprivileged)
    }

    /// Queued builds with these ids.
    pub fn builds(&self, ids: std::ops::RangeInclusive<i32>) {
        let sql = "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system, nixName)
                   select n, 0, 100, (select id from Jobsets), 'job' || n, '/nix/store/' || n || '.drv', 'x86_64-linux', 'name-' || n
                   from generate_series($1::int, $2::int) n";
        self.client()
            .execute(sql, &[ids.start(), ids.end()])
            .expect("builds");
    }

    pub fn hydrad(&self, args: &[&str]) -> HydradBuilder {
        Hydrad::run(args)
            .db(&self.db)
            .env("HYDRA_DATA", self.dir.path().display().to_string())
            .env(
                "HYDRA_CONFIG",
                self.dir.join("hydra.conf").display().to_string(),
            )
            .env("TMPDIR", self.dir.path().display().to_string())
    }

    pub fn notifier(&self) -> Hydrad {
        let mut hydrad = self.hydrad(&["notify"]).start();
        hydrad.wait_log("notifier: active");
        hydrad
    }

    pub fn rows(&self, sql: &str) -> i64 {
        self.client().query_one(sql, &[]).expect(sql).get(0)
    }
}

/// As Hydra's C++ queue runner ends a build: its rows in one transaction, NOTIFY in another.
pub fn finish(client: &mut Client, id: i32, status: i32) {
    finish_row(client, id, status);
    announce(client, "build_finished", &id.to_string());
}

pub fn finish_row(client: &mut impl GenericClient, id: i32, status: i32) {
    let sql = "update Builds set finished = 1, buildStatus = $2, startTime = 200, stopTime = extract(epoch from now())::int,
                      notificationPendingSince = extract(epoch from now())::int where id = $1";
    client.execute(sql, &[&id, &status]).expect("finish");
}

pub fn announce(client: &mut Client, channel: &str, payload: &str) {
    client
        .execute("select pg_notify($1, $2)", &[&channel, &payload])
        .expect("notify");
}

pub fn build_of(told: &Told) -> i64 {
    told.json()["build"].as_i64().expect("a build")
}

/// Opens when a test says so.
#[derive(Default)]
pub struct Door(Mutex<bool>, Condvar);

impl Door {
    pub fn open(&self) {
        *self.0.lock().expect("not poisoned") = true;
        self.1.notify_all();
    }

    pub fn pass(&self) {
        let open = self.0.lock().expect("not poisoned");
        drop(
            self.1
                .wait_while(open, |open| !*open)
                .expect("not poisoned"),
        );
    }
}

/// The body of a page.
pub fn fetch(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    text.split_once("\r\n\r\n").expect("a head").1.to_owned()
}
