//! A whole build farm: hydrad on a fresh database, a store and machines, and the ways a user has to look at it.

use std::path::PathBuf;
use std::process::Command;

use postgres::Client;

use super::process::output_of;
use super::{Db, Hydrad, HydradBuilder, NixStore, Pg, RunAs, TestDir};

/// What hydrad is given, before and while it runs. Polling is switched off and no port is opened; the rest of
/// hydra.conf is up to the test.
pub struct Farm {
    pub db: Db,
    dir: TestDir,
    user: RunAs,
    env: Vec<(String, String)>,
    conf: String,
}

impl Farm {
    /// A farm on a store that hydrad opens itself.
    pub fn new(store: &NixStore) -> Farm {
        Farm::with_env(store.owner(), store.env())
    }

    /// A farm whose programs run as `user` and find their store by `store_env`.
    pub fn with_env(user: RunAs, store_env: Vec<(String, String)>) -> Farm {
        let dir = TestDir::new(user);
        dir.sub("home", user);
        let db = Pg::shared().db();
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let mut env = store_env;
        env.extend([
            ("HYDRA_DBI".into(), db.dbi()),
            (
                "HYDRA_DATA".into(),
                dir.path().to_string_lossy().into_owned(),
            ),
            ("HYDRA_CONFIG".into(), at("hydra.conf")),
            ("NIX_REMOTE_SYSTEMS".into(), at("machines")),
            ("HOME".into(), at("home")),
        ]);
        let conf = format!(
            "queue_runner_metrics_address = none\nstatus_address = none\ngc_roots_dir = {}\nqueue_poll_interval = 0\n\
             min_free_space = 0\n",
            at("gcroots")
        );
        let farm = Farm {
            db,
            dir,
            user,
            env,
            conf: String::new(),
        };
        farm.with_conf(&conf).with_machines("")
    }

    /// Further lines of hydra.conf.
    pub fn with_conf(mut self, lines: &str) -> Farm {
        self.conf += lines;
        let file = self.dir.join("hydra.conf");
        std::fs::write(&file, &self.conf).expect("write hydra.conf");
        self
    }

    /// The machines file; hydrad notices a new one by itself.
    pub fn with_machines(self, text: &str) -> Farm {
        std::fs::write(self.dir.join("machines"), text).expect("write a machines file");
        self
    }

    /// Start the service, with further environment (which the other commands do not get).
    pub fn run(&self, env: &[(String, String)]) -> Hydrad {
        self.program(&["run"]).envs(env.iter().cloned()).start()
    }

    /// `hydrad ARGS` with this farm's settings.
    pub fn program(&self, args: &[&str]) -> HydradBuilder {
        Hydrad::run(args).envs(self.env.clone()).run_as(self.user)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.program(args).command()
    }

    /// `hydrad enqueue ARGS`; the new builds in the order of the arguments, or of the attributes of a Nix file.
    pub fn enqueue(&self, args: &[&str]) -> Vec<i32> {
        let mut command = self.command(&["enqueue", "--json"]);
        let text = output_of(command.args(args));
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON of hydrad enqueue");
        let builds = json["builds"].as_array().expect("a list of builds");
        builds
            .iter()
            .map(|build| build["id"].as_i64().expect("a build's number") as i32)
            .collect()
    }

    /// Wait until these builds have ended.
    pub fn wait_ended(&self, hydrad: &mut Hydrad, builds: &[i32]) {
        let mut client = self.db.client();
        let what = match builds {
            [first, .., last] if builds.len() > 20 => {
                format!(
                    "all {} builds from {first} to {last} should end",
                    builds.len()
                )
            }
            _ => format!("builds {builds:?} should end"),
        };
        hydrad.eventually(&what, || {
            let sql = "select count(*) from Builds where id = any($1) and finished = 0";
            let left: i64 = client.query_one(sql, &[&builds]).expect(sql).get(0);
            (left == 0).then_some(())
        });
    }

    pub fn statuses(&self, builds: &[i32]) -> Vec<Option<i32>> {
        let mut client = self.db.client();
        let sql = "select buildStatus from Builds where id = $1";
        builds
            .iter()
            .map(|id| client.query_one(sql, &[id]).expect(sql).get(0))
            .collect()
    }

    /// Where the log of a derivation's last attempt is.
    pub fn log_path(&self, drv: &str) -> PathBuf {
        let base = drv.rsplit('/').next().unwrap_or(drv);
        self.dir
            .join("build-logs")
            .join(&base[..2])
            .join(&base[2..])
    }

    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    pub fn client(&self) -> Client {
        self.db.client()
    }
}
