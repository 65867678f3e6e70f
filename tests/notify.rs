//! The notifier: real PostgreSQL, real commands, real HTTP servers on loopback.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::notified::{announce, build_of, fetch, finish, finish_row, Door, Place};
use common::{free_port, Answer, Farm, NixStore, Recorder, RunAs, Told};
use serde_json::json;

#[test]
fn s1_ten_thousand_events_are_told_by_one_resident_process_in_the_order_of_each_build() {
    let target = Recorder::accepting();
    let place = Place::new(&format!(
        "max-concurrent-notifications = 8\n<webhook>\nurl = {}\njobs = p:s:job[0-9]*00\nevents = buildQueued buildStarted\n</webhook>\n",
        target.url()
    ));
    place.builds(1..=5_000);
    let mut hydrad = place.notifier();
    let mut client = place.client();
    client
        .batch_execute(
            "select pg_notify('build_queued', n::text) from generate_series(1, 5000) n;
             select pg_notify('build_started', n::text) from generate_series(1, 5000) n",
        )
        .expect("announced");
    // A foreign program's nonsense costs nothing but a line in the log.
    announce(&mut client, "build_started", "1; drop table Builds");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 10000 from hydrad.deliveries where state = 'delivered'",
    );
    hydrad.wait_log("error processing message");
    let told = target.told();
    assert_eq!(told.len(), 100, "every hundredth build, queued and started");
    for id in (100..=5_000).step_by(100) {
        let events: Vec<&str> = told
            .iter()
            .filter(|told| build_of(told) == id)
            .filter_map(|told| told.header("x-hydrad-event"))
            .collect();
        assert_eq!(events, ["buildQueued", "buildStarted"], "build {id}");
    }
    assert!(hydrad.terminate().success());
}

#[test]
fn run_starts_both_services_and_events_of_our_own_are_in_the_ledger_before_they_are_told() {
    let target = Recorder::accepting();
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let events = "buildStarted stepFinished buildFinished";
    let farm = Farm::new(&store)
        .with_conf(&format!(
            "services = queue-runner notify\n<webhook>\nurl = {}\nevents = {events}\n</webhook>\n",
            target.url()
        ))
        .with_machines(&format!("localhost {} - 1 1 - -\n", common::system()));
    let drv = store
        .instantiate(r#"derivation { name = "told"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; }"#)
        .remove(0);
    let mut hydrad = farm.run(&[]);
    hydrad.wait_log("notifier: active");
    let builds = farm.enqueue(&[&drv]);
    farm.wait_ended(&mut hydrad, &builds);
    let told = target.wait(3);
    let names: Vec<&str> = told
        .iter()
        .filter_map(|told| told.header("x-hydrad-event"))
        .collect();
    assert_eq!(names, events.split(' ').collect::<Vec<_>>());
    assert!(told
        .iter()
        .all(|told| build_of(told) == i64::from(builds[0])));
    assert_eq!(told[2].json()["status"], "success");
    // And one for CompressLog, which is always there.
    hydrad.wait_sql(
        &farm.db,
        "select count(*) = 4 from hydrad.deliveries where state = 'delivered'",
    );
    let log = farm.log_path(&drv);
    assert!(!log.exists() && PathBuf::from(format!("{}.bz2", log.display())).exists());
    hydrad.wait_sql(
        &farm.db,
        "select count(*) = 3 and bool_and(backend is not null) from hydrad.events",
    );
    hydrad.wait_sql(
        &farm.db,
        "select count(*) = 0 from Builds where notificationPendingSince is not null",
    );
    assert!(hydrad.terminate().success());
    assert!(
        hydrad.log().contains("notifier: stopped"),
        "{}",
        hydrad.log()
    );
}

#[test]
fn s6_a_slow_target_costs_one_thread_and_the_order_of_a_build_holds() {
    let door = Arc::new(Door::default());
    let inner = door.clone();
    let slow = Recorder::start(move |_| {
        inner.pass();
        Answer::status("200 OK")
    });
    let quick = Recorder::accepting();
    let webhook = |name: &str, target: &Recorder| {
        format!(
            "<webhook>\nname = {name}\nurl = {}\nevents = buildStarted buildFinished\n</webhook>\n",
            target.url()
        )
    };
    let port = free_port();
    let place = Place::new(&format!(
        "{}{}<hydra_notify>\n<prometheus>\nlisten_address = 127.0.0.1\nport = {port}\n</prometheus>\n</hydra_notify>\n",
        webhook("slow", &slow),
        webhook("quick", &quick)
    ));
    place.builds(1..=50);
    let mut hydrad = place.notifier();
    let mut client = place.client();
    for id in 1..=50 {
        announce(&mut client, "build_started", &id.to_string());
        finish(&mut client, id, 0);
    }
    let told = quick.wait(100);
    assert_eq!(slow.told().len(), 1, "one call hangs, and only one");
    for id in 1..=50 {
        let events: Vec<&str> = told
            .iter()
            .filter(|told| build_of(told) == id)
            .filter_map(|told| told.header("x-hydrad-event"))
            .collect();
        assert_eq!(events, ["buildStarted", "buildFinished"], "build {id}");
    }
    // Not told to everybody: still marked.
    assert_eq!(
        place.rows("select count(*) from Builds where notificationPendingSince is not null"),
        50
    );
    let page = fetch(port, "/metrics");
    for line in [
        "hydrad_notify_active 1",
        "notify_event{channel=\"build_finished\"} 50",
        "notify_plugin_success{channel=\"build_started\",plugin=\"Webhook quick\"} 50",
        "hydrad_notify_waiting 100",
    ] {
        assert!(page.lines().any(|known| known == line), "{line} in {page}");
    }
    door.open();
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 200 from hydrad.deliveries where state = 'delivered'",
    );
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 0 from Builds where notificationPendingSince is not null",
    );
    assert!(slow.most_at_once() + quick.most_at_once() <= 3);
    assert!(hydrad.terminate().success());
}

#[test]
fn run_command_has_hydras_document_environment_logs_and_rows() {
    let place = Place::new("");
    let out = place.dir.join("out");
    let conf = format!(
        "<runcommand>\n job = p:s:job1\n command = cat $HYDRA_JSON > {out}; echo said; echo more >&2; echo $HYDRA_JSON >> {out}.name\n</runcommand>\n\
         <runcommand>\n job = *:*:other\n command = touch {out}.wrong\n</runcommand>\n\
         <runcommand>\n job = p\n command = exit 3;\n</runcommand>\n\
         <runcommand>\n command = /does/not/exist now\n</runcommand>\n\
         <runcommand>\n command = sleep 1000 & sleep 1000\n timeout = 1\n</runcommand>\n",
        out = out.display()
    );
    place.file("hydra.conf", &conf);
    place.builds(1..=1);
    let mut client = place.client();
    client
        .batch_execute(
            "update Builds set homepage = 'https://h', description = 'a \"b\"', license = null;
             insert into BuildOutputs values (1, 'out', '/nix/store/o'), (1, 'dev', '/nix/store/d');
             insert into BuildProducts (build, productnr, type, subtype, fileSize, sha256hash, path, name, defaultPath)
                 values (1, 1, 'file', 'iso', 7, 'abc', '/nix/store/o/x', 'x', ''), (1, 2, 'nix-build', '', null, null, '/nix/store/o', 'o', '');
             insert into BuildMetrics (build, name, unit, value, project, jobset, job, timestamp)
                 values (1, 'size', 'B', 1.5, 'p', 's', 'job1', 100)",
        )
        .expect("what belongs to it");
    let mut hydrad = place.notifier();
    finish(&mut client, 1, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where state = 'delivered'",
    );
    let stop: i32 = client
        .query_one("select stopTime from Builds", &[])
        .expect("a row")
        .get(0);
    let document: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&out).expect("written")).expect("JSON");
    let expected = json!({
        "event": "buildFinished", "build": 1, "finished": true, "timestamp": 100, "project": "p", "jobset": "s", "job": "job1",
        "drvPath": "/nix/store/1.drv", "startTime": 200, "stopTime": stop, "buildStatus": 0, "nixName": "name-1",
        "system": "x86_64-linux", "homepage": "https://h", "description": "a \"b\"", "license": null,
        "outputs": [{ "name": "dev", "path": "/nix/store/d" }, { "name": "out", "path": "/nix/store/o" }],
        "products": [
            { "productNr": 1, "type": "file", "subtype": "iso", "fileSize": 7, "sha256hash": "abc", "path": "/nix/store/o/x",
              "name": "x", "defaultPath": "" },
            { "productNr": 2, "type": "nix-build", "subtype": "", "fileSize": null, "sha256hash": null, "path": "/nix/store/o",
              "name": "o", "defaultPath": "" },
        ],
        "metrics": [{ "name": "size", "unit": "B", "value": 1.5 }],
    });
    assert_eq!(document, expected);
    let name = std::fs::read_to_string(format!("{}.name", out.display())).expect("written");
    assert!(
        name.trim().ends_with(".json") && !PathBuf::from(name.trim()).exists(),
        "{name}"
    );
    assert!(!PathBuf::from(format!("{}.wrong", out.display())).exists());

    let rows = client
        .query(
            "select job_matcher, build_id, command, uuid::text, start_time > 0 and end_time >= start_time, error_number, exit_code,
                    signal, core_dumped from RunCommandLogs order by id",
            &[],
        )
        .expect("rows");
    type End = (String, Option<i32>, Option<i32>, Option<i32>, Option<bool>);
    let ends: Vec<End> = rows
        .iter()
        .map(|row| (row.get(0), row.get(5), row.get(6), row.get(7), row.get(8)))
        .collect();
    assert_eq!(
        ends,
        [
            ("p:s:job1".to_owned(), None, Some(0), None, None),
            ("p".to_owned(), None, Some(3), None, None),
            ("*:*:*".to_owned(), Some(libc::ENOENT), None, None, None),
            (
                "*:*:*".to_owned(),
                None,
                None,
                Some(libc::SIGTERM),
                Some(false)
            ),
        ]
    );
    assert!(rows
        .iter()
        .all(|row| row.get::<_, i32>(1) == 1 && row.get::<_, bool>(4)));
    let uuid: String = rows[0].get(3);
    let log = place
        .dir
        .join("runcommand-logs")
        .join(&uuid[..2])
        .join(&uuid);
    assert_eq!(
        std::fs::read_to_string(&log).expect("a log"),
        "said\nmore\n"
    );
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&log).expect("a log").permissions().mode() & 0o777,
        0o640
    );
    hydrad.wait_log("notification command 'exit 3;' about build 1 failed with exit code 3");
    hydrad.wait_log("was ended after 1 s");
    // As in Hydra, a command that fails is not run again.
    assert_eq!(place.rows("select count(*) from TaskRetries"), 0);
    assert!(hydrad.terminate().success());
}

#[test]
fn webhooks_are_signed_templated_and_retried_and_keep_secrets() {
    use hmac::{Hmac, KeyInit, Mac};
    let fail = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let times = fail.clone();
    let target = Recorder::start(move |told| {
        let mut times = times.lock().expect("not poisoned");
        let count = times.entry(told.path.clone()).or_default();
        *count += 1;
        match (told.path.as_str(), *count) {
            ("/refuse?token=hidden", _) => Answer::status("404 Not Found"),
            ("/broken", 1) => Answer::status("500 Oh"),
            ("/garbage", 1) => Answer::Garbage,
            ("/hang", 1) => Answer::Hang,
            ("/drip", 1) => Answer::Drip,
            _ => Answer::Text("204 No Content\r\n\r\n".into()),
        }
    });
    let busy = Recorder::start({
        let first = Mutex::new(true);
        move |_| match std::mem::take(&mut *first.lock().expect("not poisoned")) {
            true => Answer::Text("503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".into()),
            false => Answer::status("200 OK"),
        }
    });
    let place = Place::new("");
    let key = place.file("key", "hush\nsecond line\n");
    let token = place.file("token", "Bearer quiet\n");
    let url = target.url();
    let mut conf = format!(
        "base_uri = https://hydra.example/\n<webhook>\nname = signed\nurl = {url}/signed\nsecret_file = {}\nheader_file = Authorization: {}\n\
         header = X-Kind: a: b\njobs = ^p:|nothing\ntemplate = {{\"text\": \"{{{{job}}}} is {{{{status}}}}: {{{{url}}}}\", \"id\": \"{{{{build}}}}\"}}\n</webhook>\n",
        key.display(),
        token.display(),
    );
    for path in ["broken", "garbage", "hang", "drip", "refuse?token=hidden"] {
        let name = path.split('?').next().expect("a name");
        conf += &format!("<webhook>\nname = {name}\nurl = {url}/{path}\ntimeout = 2\n</webhook>\n");
    }
    conf += &format!(
        "<webhook>\nname = later\nurl = {}/later\n</webhook>\n",
        busy.url()
    );
    conf +=
        &format!("<webhook>\nname = other\nurl = {url}/other\njobs = p:s:nothing\n</webhook>\n");
    place.file("hydra.conf", &conf);
    place.builds(1..=1);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    finish(&mut client, 1, 6);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 8 from hydrad.deliveries where state <> 'waiting'",
    );

    let mut told = target.told();
    told.extend(busy.told());
    let signed = told
        .iter()
        .find(|told| told.path == "/signed")
        .expect("told");
    assert_eq!(signed.method, "POST");
    assert_eq!(
        signed.json(),
        json!({ "text": "job1 is failed-with-output: https://hydra.example/build/1", "id": 1 })
    );
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"hush").expect("a key");
    mac.update(signed.body.as_bytes());
    let hex: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        signed.header("x-hydrad-signature-256"),
        Some(format!("sha256={hex}").as_str())
    );
    assert_eq!(signed.header("authorization"), Some("Bearer quiet"));
    assert_eq!(signed.header("x-kind"), Some("a: b"));
    assert_eq!(signed.header("content-type"), Some("application/json"));
    assert!(told.iter().all(|told| told.path != "/other"));
    for path in ["/broken", "/later", "/garbage", "/hang", "/drip"] {
        let keys: Vec<_> = told
            .iter()
            .filter(|told| told.path == path)
            .map(|told| told.header("idempotency-key"))
            .collect();
        assert_eq!(keys.len(), 2, "{path} is tried twice");
        assert_eq!(keys[0], keys[1], "with the same key");
    }
    let row = client
        .query_one("select state, attempts, last_error from hydrad.deliveries where target = 'Webhook refuse'", &[])
        .expect("a row");
    let (state, attempts, error): (String, i32, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((state.as_str(), attempts), ("given_up", 1));
    assert!(error.contains("answered 404 Not Found: no"), "{error}");
    // What Hydra does not know is nothing for its table.
    assert_eq!(place.rows("select count(*) from TaskRetries"), 0);
    let log = hydrad.log();
    for secret in ["hush", "quiet", "hidden"] {
        assert!(
            !log.contains(secret) && !error.contains(secret),
            "{secret} is in the log"
        );
    }
    assert!(hydrad.terminate().success());
}

#[test]
fn forges_chat_and_databases_are_told_what_hydra_tells_them() {
    let target = Recorder::accepting();
    let url = target.url();
    let place = Place::new("");
    place.file(
        "hydra.conf",
        &format!(
            "base_uri = https://hydra.example\nmax-concurrent-notifications = 4\n\
             <githubstatus>\njobs = p:s:job1\ninputs = src\nendpoint = {url}\n</githubstatus>\n\
             <githubstatus>\njobs = nothing\ninputs = src\nendpoint = {url}\n</githubstatus>\n\
             <github_authorization>\no = Bearer gh\n</github_authorization>\n\
             <gitlab_authorization>\n77 = gl\n</gitlab_authorization>\n\
             <gitea_authorization>\no = gt\n</gitea_authorization>\n\
             enable_bitbucket_status = 1\n<bitbucket>\nusername = me\npassword = pw\nendpoint = {url}\n</bitbucket>\n\
             <slack>\njobs = p:s:.*\nurl = {url}/slack\n</slack>\n\
             <circleci>\njobs = p:.*\nvcstype = github\nusername = o\nproject = r\nbranch = main\ntoken = ci\nendpoint = {url}\n</circleci>\n\
             <influxdb>\nurl = {url}/influx\ndb = hydra\n</influxdb>\n"
        ),
    );
    place.builds(1..=3);
    let rev = "0123456789abcdef0123456789abcdef01234567";
    let mut client = place.client();
    client
        .batch_execute(&format!(
            "insert into JobsetInputs (project, jobset, name, type, emailResponsible) values ('p', 's', 'bb', 'git', 1);
             insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                 select 5, id, 1, 1, 1, 1, 'h' from Jobsets;
             insert into JobsetEvalMembers (eval, build, isNew) values (5, 1, 1), (5, 2, 1), (5, 3, 1);
             insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision, value) values
                 (5, 'src', 0, 'git', '{url}/o/r.git', '{rev}', null),
                 (5, 'bb', 0, 'git', 'git@bitbucket.org:team/repo.git', '{rev}', null),
                 (5, 'gitlab_status_repo', 0, 'string', null, null, 'src'),
                 (5, 'gitlab_project_id', 0, 'string', null, null, '77'),
                 (5, 'gitea_status_repo', 0, 'string', null, null, 'src'),
                 (5, 'gitea_repo_owner', 0, 'string', null, null, 'o'),
                 (5, 'gitea_repo_name', 0, 'string', null, null, 'r');
             update Builds set job = 'job1' where id = 3"
        ))
        .expect("an evaluation");
    let mut hydrad = place.notifier();
    announce(&mut client, "build_started", "1");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 4 from hydrad.deliveries where state = 'delivered'",
    );
    finish_row(&mut client, 2, 2);
    finish_row(&mut client, 1, 0);
    client
        .batch_execute("update Builds set stopTime = 265, notificationPendingSince = 265, size = 7, closureSize = 8 where finished = 1")
        .expect("times");
    announce(&mut client, "build_finished", "1\t2");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 11 from hydrad.deliveries where state = 'delivered'",
    );
    let told = target.told();
    let before = told.len();
    let bodies = |path: &str| -> Vec<serde_json::Value> {
        let told = told.iter().filter(|told| told.path == path);
        told.inspect(|told| assert_eq!(told.header("content-type"), Some("application/json")))
            .map(Told::json)
            .collect()
    };
    let header = |path: &str, name: &str| {
        let told = told
            .iter()
            .find(|told| told.path == path)
            .unwrap_or_else(|| panic!("{path} in {told:?}"));
        told.header(name).map(str::to_owned)
    };
    let link = |id: i32| format!("https://hydra.example/build/{id}");
    let about = |id: i32| format!("Hydra build #{id} of p:s:job{id}");

    let github = format!("/repos/o/r/statuses/{rev}");
    assert_eq!(
        header(&github, "authorization").as_deref(),
        Some("Bearer gh")
    );
    assert_eq!(
        header(&github, "accept").as_deref(),
        Some("application/vnd.github.v3+json")
    );
    let status = |state: &str| {
        json!({ "state": state, "target_url": link(1), "description": about(1),
                "context": "continuous-integration/hydra:p:s:job1:1" })
    };
    assert_eq!(bodies(&github), [status("pending"), status("success")]);

    let gitlab = format!("/api/v4/projects/77/statuses/{rev}");
    assert_eq!(header(&gitlab, "private-token").as_deref(), Some("gl"));
    let status = |state: &str, id: i32| json!({ "state": state, "target_url": link(id), "description": about(id), "name": format!("Hydra job{id}") });
    assert_eq!(
        bodies(&gitlab),
        [
            status("running", 1),
            status("success", 1),
            status("failed", 2)
        ]
    );

    let gitea = format!("/api/v1/repos/o/r/statuses/{rev}");
    assert_eq!(header(&gitea, "authorization").as_deref(), Some("token gt"));
    let status = |state: &str, id: i32| json!({ "state": state, "target_url": link(id), "description": about(id), "context": format!("Hydra job{id}") });
    assert_eq!(
        bodies(&gitea),
        [
            status("pending", 1),
            status("success", 1),
            status("failure", 2)
        ]
    );

    let bitbucket = format!("/2.0/repositories/team/repo/commit/{rev}/statuses/build");
    assert_eq!(
        header(&bitbucket, "authorization").as_deref(),
        Some("Basic bWU6cHc=")
    );
    let status = |state: &str, id: i32| json!({ "state": state, "url": link(id), "name": format!("p:s:job{id}"), "key": id, "description": about(id) });
    assert_eq!(
        bodies(&bitbucket),
        [
            status("INPROGRESS", 1),
            status("SUCCESSFUL", 1),
            status("FAILED", 2)
        ]
    );

    let slack = json!({ "attachments": [{
        "fallback": "Job p:s:job1 build number 1: Success",
        "text": "Job <https://hydra.example/job/p/s/job1|p:s:job1> (and 1 others): <https://hydra.example/build/1|Success> in 1m 5s",
        "thumb_url": "https://hydra.example/static/images/checkmark_256.png",
        "title": "Job p:s:job1 build number 1", "title_link": link(1), "color": "good",
    }] });
    assert_eq!(bodies("/slack"), [slack]);

    let circleci = "/api/v1.1/project/github/o/r/tree/main?circle-token=ci";
    assert_eq!(
        told.iter()
            .filter(|told| told.path == circleci && told.body.is_empty() && told.method == "POST")
            .count(),
        1
    );

    let influx = told
        .iter()
        .find(|told| told.path == "/influx/write?db=hydra&precision=s")
        .expect("points");
    assert_eq!(
        influx.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let point = |job: i32, result: &str, status: &str, code: i32| {
        format!(
            "hydra_build_status,cached=false,job=job{job},jobset=s,project=p,repo=s,result={result},status={status},\
             system=x86_64-linux,host={} build_id=\"{job}\",build_status={code}i,closure_size=8i,duration=65i,\
             main_build_id=\"1\",queued=100i,size=7i 265",
            host.trim()
        )
    };
    let lines: Vec<&str> = influx.body.lines().collect();
    assert_eq!(
        lines,
        [
            point(1, "success", "success", 0),
            point(2, "dependency-failed", "failed", 2)
        ]
    );

    // The same job once more, with the same end: Slack hears nothing.
    finish(&mut client, 3, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 18 from hydrad.deliveries where state = 'delivered'",
    );
    assert!(target.told()[before..]
        .iter()
        .all(|told| told.path != "/slack"));
    for secret in ["Bearer gh", "Private-Token", "circle-token", "bWU6cHc="] {
        assert!(!hydrad.log().contains(secret));
    }
    assert!(hydrad.terminate().success());
}

#[test]
fn what_failed_for_hydras_plugins_stands_in_task_retries_until_it_is_told() {
    let down = Arc::new(AtomicBool::new(true));
    let inner = down.clone();
    let target = Recorder::start(move |_| match inner.load(Ordering::SeqCst) {
        true => Answer::status("502 Bad Gateway"),
        false => Answer::status("200 OK"),
    });
    let place = Place::new(&format!(
        "<slack>\njobs = .*\nurl = {}/services/hidden\nforce = 1\n</slack>\n",
        target.url()
    ));
    place.builds(1..=2);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    finish_row(&mut client, 1, 0);
    finish_row(&mut client, 2, 1);
    announce(&mut client, "build_finished", "1\t2");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from TaskRetries where channel = 'build_finished' and pluginname = 'Hydra::Plugin::SlackNotification'
         and payload = E'1\\t2' and attempts >= 1 and retry_at > extract(epoch from now()) - 60",
    );
    // It is recorded where Hydra looks: the builds are no longer marked.
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 0 from Builds where notificationPendingSince is not null",
    );
    down.store(false, Ordering::SeqCst);
    hydrad.wait_sql(&place.db, "select count(*) = 0 from TaskRetries");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where state = 'delivered'",
    );
    assert!(!hydrad.log().contains("hidden"), "{}", hydrad.log());
    assert!(hydrad.terminate().success());
}

#[test]
fn what_hydras_notifier_left_is_taken_over_and_what_is_old_is_held() {
    let place = Place::new("");
    let out = place.dir.join("ran");
    place.file(
        "hydra.conf",
        &format!(
            "<runcommand>\ncommand = echo ran >> {}\n</runcommand>\n",
            out.display()
        ),
    );
    place.builds(1..=4);
    let mut client = place.client();
    for id in 1..=4 {
        finish_row(&mut client, id, 0);
    }
    client
        .batch_execute(
            "update Builds set notificationPendingSince = null where id in (1, 4);
             update Builds set notificationPendingSince = extract(epoch from now())::int - 90000 where id = 2;
             insert into TaskRetries (channel, pluginname, payload, attempts, retry_at) values
                 ('build_finished', 'Hydra::Plugin::RunCommand', '1', 3, extract(epoch from now())::int - 5),
                 ('build_finished', 'Hydra::Plugin::RunCommand', '4', 3, extract(epoch from now())::int - 90000),
                 ('build_finished', 'Hydra::Plugin::SoTest', '1', 1, extract(epoch from now())::int)",
        )
        .expect("rows as Hydra's");
    // As a cron job or a test calls it; the unit's name is Hydra's.
    let mut once = place.hydrad(&["notify", "--queued-only"]).start();
    assert!(once.wait().success(), "{}", once.log());
    assert!(once.log().contains("held"), "{}", once.log());
    let ran = std::fs::read_to_string(&out).expect("it ran");
    assert_eq!(ran.lines().count(), 2, "builds 1 and 3");
    let pending: Vec<i32> = client
        .query(
            "select id from Builds where notificationPendingSince is not null order by id",
            &[],
        )
        .expect("rows")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        pending,
        [2],
        "held, and still marked as Hydra would have it"
    );
    let left: Vec<(String, String)> = client
        .query(
            "select pluginname, payload from TaskRetries order by id",
            &[],
        )
        .expect("rows")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let row =
        |plugin: &str, payload: &str| (format!("Hydra::Plugin::{plugin}"), payload.to_owned());
    assert_eq!(left, [row("RunCommand", "4"), row("SoTest", "1")]);
}

#[test]
fn operators_see_replay_and_discard_what_is_held_or_was_given_up() {
    let up = Arc::new(AtomicBool::new(false));
    let inner = up.clone();
    let target = Recorder::start(move |_| match inner.load(Ordering::SeqCst) {
        true => Answer::status("200 OK"),
        false => Answer::status("400 Bad Request"),
    });
    let place = Place::new(&format!(
        "<webhook>\nname = w\nurl = {}\n</webhook>\n",
        target.url()
    ));
    place.builds(1..=4);
    let mut client = place.client();
    for id in 1..=3 {
        finish_row(&mut client, id, 0);
    }
    client
        .batch_execute("update Builds set notificationPendingSince = extract(epoch from now())::int - 90000 where id < 4")
        .expect("old ones");
    let mut hydrad = place.notifier();
    finish(&mut client, 4, 1);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where state = 'given_up'",
    );
    let command = |args: &[&str]| {
        let args: Vec<&str> = ["notifications", "--json"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        let text = common::output_of(&mut place.hydrad(&args).command());
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let list = json["notifications"].as_array().expect("a list").clone();
        list.iter()
            .map(|one| {
                format!(
                    "{} {}",
                    one["payload"].as_str().expect("text"),
                    one["state"].as_str().expect("text")
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(command(&[]), ["1 held", "2 held", "3 held", "4 given_up"]);
    assert_eq!(command(&["--failed"]), ["4 given_up"]);
    assert_eq!(
        command(&["discard", "--build", "2", "--dry-run"]),
        ["2 held"]
    );
    assert_eq!(command(&["discard", "--build", "2"]), ["2 held"]);
    let pending = "select count(*) from Builds where notificationPendingSince is not null";
    assert_eq!(
        place.rows(pending),
        2,
        "what is discarded is no longer marked"
    );
    up.store(true, Ordering::SeqCst);
    assert_eq!(
        command(&["replay", "--failed", "--plugin", "Webhook"]),
        ["4 given_up"]
    );
    assert_eq!(command(&["replay", "--held", "--build", "1"]), ["1 held"]);
    // By the running notifier, at once.
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 2 from hydrad.deliveries where state = 'delivered'",
    );
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from Builds where notificationPendingSince is not null",
    );
    assert_eq!(command(&[]), ["3 held"]);
    assert_eq!(
        command(&["--delivered"]),
        ["1 delivered", "2 none", "4 delivered"]
    );
    let told: Vec<i64> = target.told().iter().map(build_of).collect();
    assert!(!told.contains(&2) && !told.contains(&3), "{told:?}");
    assert!(hydrad.terminate().success());
}

#[test]
fn what_the_notifier_cannot_serve_is_said_at_the_start() {
    for (conf, words) in [
        (
            "<sotest>\nuri = x\n</sotest>\n",
            "hydrad does not implement <sotest>",
        ),
        ("<webhook>\nname = x\n</webhook>\n", "<webhook> needs `url"),
        (
            "<webhook>\nurl = http://x/\nevents = buildDone\n</webhook>\n",
            "there is no event `buildDone`",
        ),
        (
            "<ircnotify>\nchannel = x\n</ircnotify>\n",
            "neither Hydra nor hydrad knows <ircnotify>: if a plugin of your own reads it, nothing of it happens here; remove it, \
             or add `<ircnotify>` to ignore_settings",
        ),
        (
            "<Slack>\nurl = http://x/\n</Slack>\n",
            "knows <Slack>; did you mean `slack`: ",
        ),
        (
            "notification_rates = api.github.com\n",
            "expected HOST:N",
        ),
    ] {
        let place = Place::new(conf);
        let mut hydrad = place.hydrad(&["notify"]).start();
        assert_eq!(hydrad.wait().code(), Some(2));
        assert!(hydrad.log().contains(words), "{}", hydrad.log());
    }
    let place = Place::new(
        "ignore_settings = ircnotify <sotest>\n<ircnotify>\n</ircnotify>\n<sotest>\n</sotest>\n",
    );
    let mut hydrad = place.notifier();
    assert!(hydrad.terminate().success());
}

#[test]
fn check_tries_what_plugins_need_and_names_the_rights_that_are_missing() {
    let place = Place::new("");
    let key = place.file("key", "sesame\n");
    let conf = format!(
        "services = queue-runner notify\nqueue_runner_metrics_address = none\nstatus_address = none\n\
         <webhook>\nname = fine\nurl = https://ci.example.org/hook\nsecret_file = {}\n</webhook>\n\
         <webhook>\nname = bad\nurl = https://ci.example.org/hook\nsecret_file = /nonexistent/key\n</webhook>\n\
         <slack>\njobs = .*\nurl = http://chat example/sesame\n</slack>\n",
        key.display()
    );
    place.file("hydra.conf", &conf);
    // An owner can be without them too.
    place
        .client()
        .batch_execute(
            "revoke insert, update on hydrad.deliveries from current_user;
             revoke usage on taskretries_id_seq from current_user",
        )
        .expect("revoked");
    let report = || {
        let check = place.hydrad(&["check", "--json"]);
        let output = check.command().output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(!text.contains("sesame"), "{text}");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        report["rows"].as_array().expect("rows").clone()
    };
    let rows = report();
    let rows: Vec<String> = rows
        .iter()
        .filter(|row| row["section"] == "notifier" || row["what"] == "rights")
        .map(|row| {
            let text = |key: &str| row[key].as_str().expect("text").to_owned();
            format!(
                "{} {}: {} ({})",
                text("mark"),
                text("what"),
                text("value"),
                text("note")
            )
        })
        .collect();
    let has = |words: &[&str]| {
        let found = rows
            .iter()
            .any(|row| words.iter().all(|word| row.contains(word)));
        assert!(found, "{words:?} in {rows:#?}");
    };
    has(&[
        "problem rights: missing: ",
        "INSERT on hydrad.deliveries",
        "UPDATE on hydrad.deliveries",
        "USAGE on taskretries_id_seq",
    ]);
    has(&["ok Webhook fine: ci.example.org"]);
    has(&[
        "problem Webhook bad: /nonexistent/key",
        "No such file or directory",
    ]);
    has(&[
        "problem SlackNotification: chat example",
        "the address cannot be used",
    ]);
    assert!(
        !rows.iter().any(|row| row.contains("on hydrad.events")),
        "{rows:#?}"
    );

    // Where hydrad is not to be the notifier all that is no problem of its.
    place.file(
        "hydra.conf",
        &conf.replace("queue-runner notify", "queue-runner"),
    );
    let check = place
        .hydrad(&["check", "--json"])
        .command()
        .output()
        .expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let mut rows = report["rows"].as_array().expect("rows").iter();
    assert!(rows.any(|row| row["what"] == "Webhook bad" && row["mark"] == "warning"));
}
