//! Whom the notifier tells: each plugin against a real server of its protocol on loopback, and servers that misbehave.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;

use common::notified::{announce, finish, finish_row, Place};
use common::{
    output_of, Answer, Authority, MailServer, MailTls, NixStore, Pg, Recorder, Rogue, Roguery,
    RunAs, Site, Told,
};
use postgres::Client;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

/// A clone as the evaluator keeps it, with commits by these, the oldest first; the names of the commits.
fn clone(place: &Place, uri: &str, commits: &[(&str, &str)]) -> Vec<String> {
    let hash: String = Sha256::digest(uri.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = place.dir.join("scm/git").join(hash);
    std::fs::create_dir_all(&dir).expect("a folder");
    let git = |args: &[&str], author: (&str, &str)| {
        output_of(
            Command::new("git")
                .arg("-C")
                .arg(&dir)
                .args(args)
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_AUTHOR_NAME", author.0)
                .env("GIT_AUTHOR_EMAIL", author.1)
                .env("GIT_COMMITTER_NAME", "c")
                .env("GIT_COMMITTER_EMAIL", "c@example.org"),
        )
    };
    git(&["init", "--quiet"], ("", ""));
    let mut revisions = Vec::new();
    for author in commits {
        git(&["commit", "--quiet", "--allow-empty", "-m", "x"], *author);
        revisions.push(git(&["rev-parse", "HEAD"], *author));
    }
    // git reads only what belongs to whoever asks.
    RunAs::Unprivileged.give_tree(&place.dir.join("scm"));
    revisions
}

fn to(mail: &Value) -> &str {
    mail["headers"]["To"].as_str().expect("To")
}

fn delivered(count: usize) -> String {
    format!("select count(*) = {count} from hydrad.deliveries where target = 'EmailNotification' and state = 'delivered'")
}

#[test]
fn mails_are_hydras_and_go_to_maintainers_and_committers() {
    let server = MailServer::start(None, None);
    let chat = Recorder::accepting();
    let place = Place::new(&format!(
        "base_uri = https://hydra.example/\nemail_notification = 1\nnotification_sender = farm@example.org\n\
         <email>\nhost = 127.0.0.1\nport = {}\n</email>\n<slack>\njobs = .*\nurl = {}/slack\n</slack>\n",
        server.port(),
        chat.url()
    ));
    place.builds(1..=7);
    let uri = "https://git.example/r.git";
    let revisions = clone(
        &place,
        uri,
        &[
            ("Zero", "z@x"),
            ("Ann", "ann@x"),
            ("Bob & Ü.", "bob@x"),
            ("Ann", "ann@x"),
        ],
    );
    let mut client = place.client();
    client
        .batch_execute(&format!(
            "insert into JobsetInputs (project, jobset, name, type, emailResponsible) values ('p', 's', 'src', 'git', 1);
             insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                 select n, id, 1, 1, 1, 1, 'h' from Jobsets, generate_series(7, 8) n;
             insert into JobsetEvalMembers (eval, build, isNew) values (7, 1, 1), (8, 3, 1), (8, 4, 1);
             insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision) values
                 (7, 'src', 0, 'git', '{uri}', '{}'), (8, 'src', 0, 'git', '{uri}', '{}');
             update Builds set maintainers = 'm@x, bob@x' where id = 1;
             update Builds set maintainers = 'm@x, n@x,bob@x', job = 'job1' where id = 3;
             update Builds set maintainers = 'm@x' where id = 4;
             update Builds set maintainers = 'm@x', job = 'job1' where id in (5, 6, 7)",
            revisions[0], revisions[3]
        ))
        .expect("two evaluations");
    let mut hydrad = place.notifier();

    // The first of its job, a success.
    finish(&mut client, 1, 0);
    let mails = server.wait(2);
    assert_eq!(
        mails.iter().map(to).collect::<Vec<_>>(),
        ["bob@x", "m@x"],
        "each address has a mail"
    );
    let mail = &mails[1];
    let mut headers = mail["headers"].clone();
    let headers = headers.as_object_mut().expect("headers");
    for changing in ["Date", "Message-ID"] {
        assert!(headers.remove(changing).is_some(), "{changing}");
    }
    assert_eq!(
        json!(headers),
        json!({
            "To": "m@x", "From": "Hydra Build Daemon <farm@example.org>",
            "Subject": "Success: Hydra job p:s:job1 on x86_64-linux",
            "X-Hydra-Instance": "https://hydra.example", "X-Hydra-Project": "p", "X-Hydra-Jobset": "s", "X-Hydra-Job": "job1",
            "X-Hydra-System": "x86_64-linux", "MIME-Version": "1.0", "Content-Type": "text/plain; charset=\"utf-8\"",
            "Content-Transfer-Encoding": "quoted-printable",
        })
    );
    assert_eq!(mail["sender"], "farm@example.org");
    let body = mail["body"].as_str().expect("text");
    for part in ["is \"Success\"", "https://hydra.example/build/1", "Yay!"] {
        assert!(body.contains(part), "{part} in {body}");
    }

    // It fails, and takes another with it: who committed in between is told, and of the build itself alone.
    finish_row(&mut client, 4, 2);
    finish_row(&mut client, 3, 1);
    announce(&mut client, "build_finished", "3\t4");
    hydrad.wait_sql(&place.db, &delivered(2));
    let mails = server.mails().split_off(2);
    assert_eq!(
        mails.iter().map(to).collect::<Vec<_>>(),
        ["ann@x", "bob@x", "m@x", "n@x"]
    );
    let of = |mail: &Value| {
        let subject = mail["headers"]["Subject"]
            .as_str()
            .expect("a subject")
            .to_owned();
        (subject, mail["body"].as_str().expect("a text").to_owned())
    };
    let due = "This may be due to 3 commits by Ann <ann@x> or Bob & Ü. <bob@x>.";
    let (subject, body) = of(&mails[2]);
    assert_eq!(
        subject,
        "Failed: Hydra job p:s:job1 on x86_64-linux (and 1 others)"
    );
    for part in [
        "has changed from \"Success\" to \"Failed\"",
        "* p:s:job4 (https://hydra.example/build/4)",
        due,
        "Go forth and fix them.",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    for at in [0, 1, 3] {
        let (subject, body) = of(&mails[at]);
        assert_eq!(subject, "Failed: Hydra job p:s:job1 on x86_64-linux");
        assert!(body.contains(due) && body.contains("fix it."), "{body}");
        assert!(!body.contains("build/4"), "{body}");
    }

    // Slack hears of them as well; names are escaped there.
    let said = chat.wait(2)[1].json()["attachments"][0]["text"]
        .as_str()
        .expect("text")
        .to_owned();
    let due = ", likely due to 3 commits by <mailto:ann@x|Ann> or <mailto:bob@x|Bob &amp; Ü.>";
    assert!(said.ends_with(due), "{said}");

    // The same status again, a cancelled one, a jobset without mails: nothing. An address instead of the maintainers': that one.
    finish(&mut client, 5, 1);
    finish(&mut client, 2, 4);
    hydrad.wait_sql(&place.db, &delivered(4));
    client
        .batch_execute("update Jobsets set enableEmail = 0; update Builds set maintainers = 'm@x' where id = 6")
        .expect("off");
    finish(&mut client, 6, 0);
    hydrad.wait_sql(&place.db, &delivered(5));
    assert_eq!(server.mails().len(), 6);
    client
        .batch_execute("update Jobsets set enableEmail = 1, emailOverride = 'list@x'")
        .expect("on");
    finish(&mut client, 7, 1);
    assert_eq!(to(&server.wait(7)[6]), "list@x");
    assert!(hydrad.terminate().success());
}

#[test]
fn an_error_of_an_evaluation_goes_to_the_owner_who_wants_it() {
    let place = Place::new("email_notification = 1\nnotification_sender = farm@example.org\n");
    let sink = place.dir.join("sink");
    let mut client = place.client();
    client
        .batch_execute(
            "update Users set emailAddress = 'owner@x';
             update Jobsets set errorMsg = 'error: .hidden line' || chr(10) || 'at «f» ' || repeat('x', 100)",
        )
        .expect("an error");
    let mut hydrad = place
        .hydrad(&["notify"])
        .env("HYDRA_MAIL_SINK", sink.display().to_string())
        .start();
    hydrad.wait_log("notifier: active");
    let jobset: i32 = client
        .query_one("select id from Jobsets", &[])
        .expect("a row")
        .get(0);
    let mut announce_error = |wanted: i32| {
        client
            .execute("update Users set emailOnError = $1", &[&wanted])
            .expect("wanted");
        let payload = format!("1.5.7\t{jobset}");
        client
            .query(
                include_str!("../sql/queue/notify_all.sql"),
                &[&vec!["eval_error_changed"], &vec![payload]],
            )
            .expect("as the evaluator announces it");
    };
    announce_error(0);
    hydrad.wait_sql(&place.db, &delivered(1));
    assert!(!sink.exists(), "it is not wanted");
    announce_error(1);
    hydrad.wait_sql(&place.db, &delivered(2));
    let text = std::fs::read_to_string(&sink).expect("a mail");
    for line in [
        "To: owner@x",
        "Subject: Hydra p:s evaluation error",
        "X-Hydra-Project: p",
        "X-Hydra-Jobset: s",
        "error: .hidden line",
        "at =C2=ABf=C2=BB ",
    ] {
        assert!(
            text.lines().any(|known| known.starts_with(line)),
            "{line} in {text}"
        );
    }
    assert!(text
        .lines()
        .any(|line| line.starts_with("X-Hydra-Instance: http://")));
    assert!(hydrad.terminate().success());

    // What cannot be sent waits here alone: Hydra's notifier does not know such an event.
    let mut hydrad = place
        .hydrad(&["notify"])
        .env("HYDRA_MAIL_SINK", "/nonexistent/sink")
        .start();
    hydrad.wait_log("notifier: active");
    announce_error(1);
    hydrad.wait_log("/nonexistent/sink: No such file or directory; try 1 failed");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where state = 'waiting' and attempts > 0",
    );
    assert_eq!(place.rows("select count(*) from TaskRetries"), 0);
    assert!(hydrad.terminate().success());
}

#[test]
fn a_digest_is_one_mail_for_each_evaluation_and_recipient() {
    let server = MailServer::start(None, None);
    let place = Place::new(&format!(
        "email_notification = 1\nnotification_sender = farm@example.org\nmax-concurrent-notifications = 4\n\
         <email>\nhost = 127.0.0.1\nport = {}\ndigest = 1\n</email>\n",
        server.port()
    ));
    place.builds(1..=20);
    let mut client = place.client();
    client
        .batch_execute(
            "insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                 select n, id, 1, 1, 1, 1, 'h' from Jobsets, generate_series(7, 8) n;
             insert into JobsetEvalMembers (eval, build, isNew) select 7, n, 1 from generate_series(1, 9) n;
             insert into JobsetEvalMembers (eval, build, isNew) select 8, n, 1 from generate_series(11, 19) n;
             update Builds set maintainers = case when id % 2 = 1 then 'odd@x, all@x' else 'all@x' end;
             update Builds set job = 'job' || id - 10 where id between 11 and 19",
        )
        .expect("two evaluations");
    let mut hydrad = place.notifier();
    // First successes are no news; two failures are.
    for id in 1..=9 {
        let status = i32::from(id == 2 || id == 3);
        finish(&mut client, id, status);
    }
    let mails = server.wait(2);
    let subject = |mail: &Value| {
        mail["headers"]["Subject"]
            .as_str()
            .expect("a subject")
            .to_owned()
    };
    assert_eq!(to(&mails[0]), "all@x");
    assert_eq!(
        subject(&mails[0]),
        "Hydra jobset p:s: 2 failed in evaluation 7"
    );
    assert_eq!(to(&mails[1]), "odd@x");
    assert_eq!(
        subject(&mails[1]),
        "Hydra jobset p:s: 1 failed in evaluation 7"
    );
    // The last one of the next evaluation is cancelled by somebody: no event, and yet it has ended.
    for id in 11..=18 {
        finish(&mut client, id, i32::from(id == 14));
    }
    hydrad.wait_sql(&place.db, &delivered(17 + 1));
    assert_eq!(server.mails().len(), 2, "it goes on");
    finish_row(&mut client, 19, 4);
    // A build that no evaluation made is told of at once.
    finish(&mut client, 20, 1);
    let mut mails = server.wait(5).split_off(2);
    mails.sort_by_key(|mail| (subject(mail), to(mail).to_owned()));
    let told: Vec<(String, &str)> = mails.iter().map(|mail| (subject(mail), to(mail))).collect();
    let expected = [
        ("Failed: Hydra job p:s:job20 on x86_64-linux", "all@x"),
        (
            "Hydra jobset p:s: 1 failed, 2 succeed again in evaluation 8",
            "all@x",
        ),
        ("Hydra jobset p:s: 1 succeed again in evaluation 8", "odd@x"),
    ];
    assert_eq!(told, expected.map(|(subject, to)| (subject.to_owned(), to)));
    let body = mails[1]["body"].as_str().expect("a text");
    for part in [
        "* job4 on x86_64-linux: \"Failed\", was \"Success\"",
        "* job2 on x86_64-linux: \"Success\", was \"Failed\"",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    assert!(hydrad.terminate().success());
}

/// One that is told, and the one request that it gets about the success of build 1.
struct Target {
    /// In the ledger.
    name: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Value,
    body: Value,
}

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
/// Whoever of them is in a log or the ledger is not kept.
const SECRETS: [&str; 9] = [
    "gh-hidden",
    "gl-hidden",
    "gt-hidden",
    "bb-hidden",
    "bWU6YmItaGlkZGVu",
    "slack-hidden",
    "ci-hidden",
    "matrix-hidden",
    "hook-hidden",
];

fn targets() -> Vec<Target> {
    let target = |name, path, headers, body| Target {
        name,
        method: "POST",
        path,
        headers,
        body,
    };
    let link = "https://hydra.example/build/1";
    let about = "Hydra build #1 of p:s:job1";
    vec![
        target(
            "GithubStatus",
            "/repos/o/r/statuses/0123456789abcdef0123456789abcdef01234567",
            json!({ "content-type": "application/json", "accept": "application/vnd.github.v3+json", "authorization": "Bearer gh-hidden" }),
            json!({ "state": "success", "target_url": link, "description": about,
                    "context": "continuous-integration/hydra:p:s:job1:1" }),
        ),
        target(
            "GitlabStatus",
            "/api/v4/projects/77/statuses/0123456789abcdef0123456789abcdef01234567",
            json!({ "content-type": "application/json", "private-token": "gl-hidden" }),
            json!({ "state": "success", "target_url": link, "description": about, "name": "Hydra job1" }),
        ),
        target(
            "GiteaStatus",
            "/api/v1/repos/o/r/statuses/0123456789abcdef0123456789abcdef01234567",
            json!({ "content-type": "application/json", "authorization": "token gt-hidden" }),
            json!({ "state": "success", "target_url": link, "description": about, "context": "Hydra job1" }),
        ),
        target(
            "BitBucketStatus",
            "/2.0/repositories/team/repo/commit/0123456789abcdef0123456789abcdef01234567/statuses/build",
            json!({ "content-type": "application/json", "authorization": "Basic bWU6YmItaGlkZGVu" }),
            json!({ "state": "SUCCESSFUL", "url": link, "name": "p:s:job1", "key": 1, "description": about }),
        ),
        target(
            "SlackNotification",
            "/services/slack-hidden",
            json!({ "content-type": "application/json" }),
            json!({ "attachments": [{
                "fallback": "Job p:s:job1 build number 1: Success",
                "text": "Job <https://hydra.example/job/p/s/job1|p:s:job1>: <https://hydra.example/build/1|Success> in 1m 5s",
                "thumb_url": "https://hydra.example/static/images/checkmark_256.png",
                "title": "Job p:s:job1 build number 1", "title_link": link, "color": "good",
            }] }),
        ),
        target(
            "CircleCINotification",
            "/api/v1.1/project/github/o/r/tree/main?circle-token=ci-hidden",
            json!({ "content-type": "application/json" }),
            json!(null),
        ),
        target(
            "InfluxDBNotification",
            "/influx/write?db=hydra&precision=s",
            json!({ "content-type": "application/x-www-form-urlencoded" }),
            json!(format!(
                "hydra_build_status,cached=false,job=job1,jobset=s,project=p,repo=s,result=success,status=success,system=x86_64-linux,\
                 host={} build_id=\"1\",build_status=0i,closure_size=8i,duration=65i,main_build_id=\"1\",queued=100i,size=7i 265",
                std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim()
            )),
        ),
        target(
            "Webhook w",
            "/hook",
            json!({ "content-type": "application/json", "authorization": "Bearer hook-hidden", "x-hydrad-event": "buildFinished",
                    "idempotency-key": "hydrad-1" }),
            json!({ "job": "job1", "status": "success" }),
        ),
        Target {
            method: "PUT",
            ..target(
                "Matrix !room:x",
                "/_matrix/client/v3/rooms/%21room%3Ax/send/m.room.message/hydrad-1-1-265",
                json!({ "content-type": "application/json", "authorization": "Bearer matrix-hidden" }),
                json!({
                    "msgtype": "m.notice", "body": "Job p:s:job1: Success in 1m 5s https://hydra.example/build/1",
                    "format": "org.matrix.custom.html",
                    "formatted_body": "Job <a href=\"https://hydra.example/job/p/s/job1\">p:s:job1</a>: \
                                       <a href=\"https://hydra.example/build/1\">Success</a> in 1m 5s",
                }),
            )
        },
    ]
}

/// A place whose build 1 is of interest to all of [`targets`], which are at `url`.
fn everybody(url: &str, time_max: u32) -> Place {
    let place = Place::new("");
    let matrix = place.file("matrix-token", "matrix-hidden\n");
    let hook = place.file("hook-token", "Bearer hook-hidden\n");
    place.file(
        "hydra.conf",
        &format!(
            "base_uri = https://hydra.example\nmax-concurrent-notifications = 16\nnotification_timeout = {time_max}\ncompress_build_logs = 0\n\
             <githubstatus>\njobs = p:s:.*\ninputs = src\nendpoint = {url}\n</githubstatus>\n\
             <github_authorization>\no = Bearer gh-hidden\n</github_authorization>\n\
             <gitlab_authorization>\n77 = gl-hidden\n</gitlab_authorization>\n\
             <gitea_authorization>\no = gt-hidden\n</gitea_authorization>\n\
             enable_bitbucket_status = 1\n<bitbucket>\nusername = me\npassword = bb-hidden\nendpoint = {url}\n</bitbucket>\n\
             <slack>\njobs = .*\nurl = {url}/services/slack-hidden\n</slack>\n\
             <circleci>\njobs = .*\nvcstype = github\nusername = o\nproject = r\nbranch = main\ntoken = ci-hidden\nendpoint = {url}\n</circleci>\n\
             <influxdb>\nurl = {url}/influx\ndb = hydra\n</influxdb>\n\
             <webhook>\nname = w\nurl = {url}/hook\nheader_file = Authorization: {}\n\
             template = {{\"job\": \"{{{{job}}}}\", \"status\": \"{{{{status}}}}\"}}\n</webhook>\n\
             <matrix>\nhomeserver = {url}\nroom = !room:x\ntoken_file = {}\n</matrix>\n",
            hook.display(),
            matrix.display()
        ),
    );
    place.builds(1..=1);
    let sql = format!(
        "insert into JobsetInputs (project, jobset, name, type, emailResponsible) values ('p', 's', 'bb', 'git', 1);
         insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
             select 5, id, 1, 1, 1, 1, 'h' from Jobsets;
         insert into JobsetEvalMembers (eval, build, isNew) values (5, 1, 1);
         insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision, value) values
             (5, 'src', 0, 'git', '{url}/o/r.git', '{REVISION}', null),
             (5, 'bb', 0, 'git', 'git@bitbucket.org:team/repo.git', '{REVISION}', null),
             (5, 'gitlab_status_repo', 0, 'string', null, null, 'src'), (5, 'gitlab_project_id', 0, 'string', null, null, '77'),
             (5, 'gitea_status_repo', 0, 'string', null, null, 'src'), (5, 'gitea_repo_owner', 0, 'string', null, null, 'o'),
             (5, 'gitea_repo_name', 0, 'string', null, null, 'r')"
    );
    place.client().batch_execute(&sql).expect("an evaluation");
    place
}

/// Ends build 1 at a known time.
fn end(place: &Place) {
    let mut client = place.client();
    client
        .batch_execute(
            "update Builds set finished = 1, buildStatus = 0, startTime = 200, stopTime = 265, size = 7, closureSize = 8,
                    notificationPendingSince = extract(epoch from now())::int",
        )
        .expect("an end");
    announce(&mut client, "build_finished", "1");
}

/// What became of the deliveries: state, tries, what went wrong last.
fn deliveries(place: &Place) -> BTreeMap<String, (String, i32, String)> {
    let rows = place
        .client()
        .query(
            "select target, state, attempts, coalesce(last_error, '') from hydrad.deliveries",
            &[],
        )
        .expect("the ledger");
    let row = |row: &postgres::Row| (row.get(0), (row.get(1), row.get(2), row.get(3)));
    rows.iter().map(row).collect()
}

fn keeps_secrets(fault: &str, place: &Place, log: &str) {
    let ledger = format!("{:?}", deliveries(place));
    for secret in SECRETS {
        assert!(!log.contains(secret), "{fault}: {secret} in the log: {log}");
        assert!(!ledger.contains(secret), "{fault}: {secret} in {ledger}");
    }
}

#[test]
fn every_web_target_is_told_what_the_contract_says_and_gets_over_every_fault() {
    // The first answer for each address; what the ledger says of it; whether there is another try.
    type Fault = (&'static str, fn(&Told) -> Answer, &'static str, bool);
    let faults: [Fault; 9] = [
        ("none", |_| Answer::status("200 OK"), "", false),
        (
            "404, and it repeats what it got",
            |told| {
                let body = format!("{} {:?} {}", told.path, told.headers, told.body);
                Answer::Text(format!(
                    "404 Not Found\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ))
            },
            "answered 404 Not Found",
            false,
        ),
        (
            "401",
            |_| Answer::status("401 Unauthorized"),
            "answered 401 Unauthorized",
            true,
        ),
        (
            "429",
            |_| {
                let body = r#"{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 300}"#;
                Answer::Text(format!(
                    "429 Too Many Requests\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ))
            },
            "", // Some only wait for the pause that another one was asked for.
            true,
        ),
        ("500", |_| Answer::status("500 Oh"), "answered 500", true),
        ("hang", |_| Answer::Hang, "no answer within 2 s", true),
        ("garbage", |_| Answer::Garbage, "", true),
        ("drip", |_| Answer::Drip, "", true),
        ("hangs up", |_| Answer::Text(String::new()), "", true),
    ];
    std::thread::scope(|scope| {
        for (fault, first, error, again) in faults {
            scope.spawn(move || {
                let is_late = matches!(fault, "hang" | "drip");
                let seen = Mutex::new(BTreeSet::new());
                let server = Recorder::start(move |told| {
                    match seen.lock().expect("not poisoned").insert(told.path.clone()) {
                        true => first(told),
                        false => Answer::status("200 OK"),
                    }
                });
                let place = everybody(&server.url(), if is_late { 2 } else { 30 });
                let mut hydrad = place.notifier();
                end(&place);
                hydrad.wait_sql(
                    &place.db,
                    "select count(*) = 9 from hydrad.deliveries where state <> 'waiting'",
                );
                let became = deliveries(&place);
                let told = server.told();
                for target in targets() {
                    let (state, attempts, last) = &became[target.name];
                    let name = format!(
                        "{fault}: {}: {attempts} tries, {state}, {last}",
                        target.name
                    );
                    let requests: Vec<&Told> = told
                        .iter()
                        .filter(|told| told.path == target.path)
                        .collect();
                    let expected = match again || error.is_empty() {
                        true => "delivered",
                        false => "given_up",
                    };
                    assert_eq!(state, expected, "{name}");
                    match (again, requests.len()) {
                        (false, count) => assert_eq!(count, 1, "{name}"),
                        (true, count) => assert!(count >= 2, "{name}"),
                    }
                    if expected == "given_up" {
                        assert!(last.contains(error), "{name}");
                    }
                    for request in requests {
                        assert_eq!(request.method, target.method, "{name}");
                        for (header, value) in target.headers.as_object().expect("headers") {
                            assert_eq!(request.header(header), value.as_str(), "{name}: {header}");
                        }
                        let body = match &target.body {
                            Value::Object(_) => request.json(),
                            Value::Null if request.body.is_empty() => Value::Null,
                            _ => json!(request.body),
                        };
                        assert_eq!(body, target.body, "{name}");
                    }
                }
                if again && !error.is_empty() {
                    assert!(hydrad.log().contains(error), "{fault}: {}", hydrad.log());
                }
                keeps_secrets(fault, &place, &hydrad.log());
                assert!(hydrad.terminate().success());
            });
        }
    });
}

#[test]
fn web_targets_must_be_who_they_say_they_are() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let cases = [
        ("good", ours.issue("good", "IP:127.0.0.1"), &ours, None),
        (
            "unknown authority",
            ours.issue("own", "IP:127.0.0.1"),
            &other,
            Some("UnknownIssuer"),
        ),
        (
            "wrong name",
            ours.issue("name", "DNS:elsewhere.example"),
            &ours,
            Some("not valid for name"),
        ),
    ];
    std::thread::scope(|scope| {
        for (case, own, trusted, error) in cases {
            scope.spawn(move || {
                let server = Recorder::start_tls(&own, |_| Answer::status("200 OK"));
                let place = everybody(&server.url(), 30);
                let mut hydrad = place
                    .hydrad(&["notify"])
                    .env("SSL_CERT_FILE", trusted.certificate().display().to_string())
                    .start();
                hydrad.wait_log("notifier: active");
                end(&place);
                hydrad.wait_sql(
                    &place.db,
                    "select count(*) = 9 from hydrad.deliveries where state = 'delivered' or attempts > 0",
                );
                for (target, (state, _, last)) in deliveries(&place) {
                    match error {
                        None => assert_eq!(state, "delivered", "{case}: {target}: {last}"),
                        Some(error) => {
                            assert_eq!(state, "waiting", "{case}: {target}");
                            assert!(last.contains(error), "{case}: {target}: {last}");
                        }
                    }
                }
                assert_eq!(server.told().is_empty(), error.is_some(), "{case}");
                keeps_secrets(case, &place, &hydrad.log());
                assert!(hydrad.terminate().success());
            });
        }
    });
}

#[test]
fn every_mail_server_gets_its_mail_or_says_why_not() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let good = ours.issue("good", "IP:127.0.0.1");
    let name = ours.issue("name", "DNS:elsewhere.example");
    /// Whom the notifier finds.
    enum Server {
        Mail(MailServer),
        Rogue(Rogue),
        Nobody,
    }
    struct Case {
        name: &'static str,
        server: Server,
        /// More lines of `<email>`.
        conf: &'static str,
        trusted: Option<Authority>,
        /// State, and a part of the last error.
        expected: (&'static str, &'static str),
        /// Recipients that have a mail in the end.
        told: &'static [&'static str],
    }
    const LOGIN: &str = "username = me\npassword_file = PASSWORD";
    let mail = |tls, auth| Server::Mail(MailServer::start(tls, auth));
    let rogue = |roguery| Server::Rogue(Rogue::start(roguery));
    let start = Some((MailTls::Start, &good));
    let case = |name, server, conf, expected, told| Case {
        name,
        server,
        conf,
        trusted: None,
        expected,
        told,
    };
    let waits = |error| ("waiting", error);
    let all: &[&str] = &["a@x", "later@x"];
    let cases = [
        case(
            "plain",
            mail(None, None),
            "",
            (
                "given_up",
                "550 5.1.1 no such user here to the recipient nobody@x",
            ),
            all,
        ),
        case(
            "STARTTLS",
            mail(start, None),
            "tls = starttls",
            ("given_up", "550"),
            all,
        ),
        case(
            "TLS",
            mail(Some((MailTls::Always, &good)), None),
            "tls = tls",
            ("given_up", "550"),
            all,
        ),
        case(
            "AUTH",
            mail(start, Some("me:mail-hidden")),
            "tls = starttls\nLOGIN",
            ("given_up", "550"),
            all,
        ),
        case(
            "AUTH to this host",
            mail(None, Some("me:mail-hidden")),
            "LOGIN",
            ("given_up", "550"),
            all,
        ),
        case(
            "wrong password",
            mail(start, Some("me:other")),
            "tls = starttls\nLOGIN",
            waits("535 5.7.8 not you, *** to AUTH"),
            &[],
        ),
        case(
            "no password",
            mail(None, Some("me:other")),
            "",
            waits("530"),
            &[],
        ),
        case("TLS not begun", mail(start, None), "", waits("530"), &[]),
        case(
            "no STARTTLS",
            mail(None, None),
            "tls = starttls",
            waits("does not offer STARTTLS"),
            &[],
        ),
        Case {
            trusted: Some(other),
            ..case(
                "unknown authority",
                mail(start, None),
                "tls = starttls",
                waits("TLS: invalid peer certificate: UnknownIssuer"),
                &[],
            )
        },
        case(
            "wrong name",
            mail(Some((MailTls::Always, &name)), None),
            "tls = tls",
            waits("not valid for name"),
            &[],
        ),
        case(
            "TLS to one that has none",
            rogue(Roguery::Says(b"220 hello\r\n")),
            "tls = tls",
            waits("TLS: "),
            &[],
        ),
        case(
            "nobody",
            Server::Nobody,
            "",
            waits("Connection refused"),
            &[],
        ),
        case(
            "silence",
            rogue(Roguery::Silence),
            "",
            waits("not done within 2 s"),
            &[],
        ),
        case(
            "silence for TLS",
            rogue(Roguery::Silence),
            "tls = tls",
            waits("not done within 2 s"),
            &[],
        ),
        case(
            "garbage",
            rogue(Roguery::Says(b"SSH-2.0-x\r\n")),
            "",
            waits("does not speak SMTP: it sent `SSH-2.0-x`"),
            &[],
        ),
        case(
            "drip",
            rogue(Roguery::Drips(b"220-welcome\r\n220")),
            "",
            waits("not done within 2 s"),
            &[],
        ),
        case("hangs up", rogue(Roguery::HangsUp), "", waits(""), &[]),
        case(
            "never at home",
            rogue(Roguery::Says(b"421 not today\r\n")),
            "",
            waits("answered 421 not today to its greeting"),
            &[],
        ),
    ];
    std::thread::scope(|scope| {
        for case in &cases {
            let ours = &ours;
            scope.spawn(move || {
                let place = Place::new("");
                let password = place.file("password", "mail-hidden\n");
                let port = match &case.server {
                    Server::Mail(server) => server.port(),
                    Server::Rogue(rogue) => rogue.port(),
                    Server::Nobody => common::free_port(),
                };
                let conf = case.conf.replace("LOGIN", LOGIN);
                let conf = conf.replace("PASSWORD", &password.display().to_string());
                place.file(
                    "hydra.conf",
                    &format!(
                        "email_notification = 1\nnotification_sender = farm@example.org\nnotification_timeout = {}\n\
                         compress_build_logs = 0\n<email>\nhost = 127.0.0.1\nport = {port}\n{conf}\n</email>\n",
                        if case.expected.1.contains("within 2 s") { 2 } else { 30 }
                    ),
                );
                place.builds(1..=1);
                let mut client = place.client();
                client
                    .batch_execute("update Builds set maintainers = 'a@x, later@x, nobody@x, no address'")
                    .expect("recipients");
                let trusted = case.trusted.as_ref().unwrap_or(ours).certificate();
                let mut hydrad = place
                    .hydrad(&["notify"])
                    .env("SSL_CERT_FILE", trusted.display().to_string())
                    .start();
                hydrad.wait_log("notifier: active");
                finish(&mut client, 1, 1);
                let (state, error) = case.expected;
                hydrad.wait_sql(
                    &place.db,
                    &format!("select count(*) = 1 from hydrad.deliveries where state = '{state}' and attempts > 0 and last_error is not null"),
                );
                let (name, log) = (case.name, hydrad.log());
                let (_, _, last) = &deliveries(&place)["EmailNotification"];
                // Of several that were refused one is in the ledger, and all are in the log.
                assert!(last.contains(error) || state == "given_up" && log.contains(error), "{name}: {last}\n{log}");
                for secret in ["mail-hidden", "bWFpbC1oaWRkZW4", "AG1lAG1haWwtaGlkZGVu"] {
                    assert!(!log.contains(secret) && !last.contains(secret), "{name}: {log}");
                }
                if let Server::Mail(server) = &case.server {
                    let mails = server.mails();
                    let mut told: Vec<&str> = mails.iter().map(to).collect();
                    told.sort_unstable();
                    assert_eq!(told, case.told, "{name}: each has one mail, whatever became of the others");
                    for mail in &mails {
                        assert_eq!(mail["tls"], case.conf.contains("tls ="), "{name}");
                        let user = case.conf.contains("LOGIN").then_some("me");
                        assert_eq!(mail["user"], json!(user), "{name}");
                    }
                }
                assert!(hydrad.terminate().success());
            });
        }
    });
}

#[test]
fn sendmail_gets_the_mail_and_its_failure_is_told() {
    let place = Place::new("");
    let taken = place.dir.join("taken");
    let script = |name: &str, text: &str| {
        let path = place.file(name, &format!("#!/bin/sh\n{text}\n"));
        output_of(Command::new("chmod").arg("755").arg(&path));
        path
    };
    let good = script(
        "good",
        &format!("echo \"$@\" >> {0}\ncat >> {0}", taken.display()),
    );
    let bad = script("bad", "cat > /dev/null; echo no spool >&2; exit 75");
    let conf = |program: &std::path::Path| {
        format!(
            "email_notification = 1\nnotification_sender = farm@example.org\nnotification_timeout = 5\n<email>\nsendmail = {}\n</email>\n",
            program.display()
        )
    };
    place.file("hydra.conf", &conf(&bad));
    place.builds(1..=1);
    let mut client = place.client();
    client
        .batch_execute("update Builds set maintainers = 'a@x'")
        .expect("a recipient");
    let mut hydrad = place.notifier();
    finish(&mut client, 1, 1);
    hydrad.wait_log("exit code 75 no spool");
    // The program is mended, and used at once.
    place.file("hydra.conf", &conf(&good));
    hydrad.hang_up();
    hydrad.wait_sql(&place.db, &delivered(1));
    let text = std::fs::read_to_string(&taken).expect("a mail");
    assert!(
        text.starts_with("-i -f farm@example.org -- a@x\n"),
        "{text}"
    );
    assert!(
        text.contains("\nTo: a@x\n") && !text.contains('\r'),
        "{text}"
    );
    assert!(hydrad.terminate().success());
}

#[test]
fn a_dynamic_command_is_run_where_everybody_lets_it() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new("<dynamicruncommand>\nenable = 1\n</dynamicruncommand>\n");
    let ran = place.dir.join("ran");
    let hook = |name: &str, mode: u32| {
        let text = format!(
            "#!/bin/sh\necho {name} >> {}; cat \"$HYDRA_JSON\" >> {0}\n",
            ran.display()
        );
        let path = place.file(name, &text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        path
    };
    let (good, plain) = (hook("good", 0o755), hook("plain", 0o644));
    let link = place.dir.join("link");
    std::os::unix::fs::symlink("good", &link).expect("a link");
    let far = place.dir.join("far");
    std::os::unix::fs::symlink("link", &far).expect("a link");
    place.builds(1..=10);
    let mut client = place.client();
    let mut output = |build: i32, job: &str, path: &str| {
        client
            .execute("update Builds set job = $2 where id = $1", &[&build, &job])
            .expect("a job");
        client
            .execute(
                "insert into BuildOutputs values ($1, 'out', $2)",
                &[&build, &path],
            )
            .expect("an output");
    };
    let text = |path: &std::path::Path| path.display().to_string();
    for (build, job, path) in [
        (1, "runCommandHook.first", text(&good)),
        (2, "runCommandHook.second", text(&link)),
        (3, "runCommandHook.plain", text(&plain)),
        (4, "runCommandHook.far", text(&far)),
        (5, "runCommandHook.gone", "/nonexistent/x".to_owned()),
        (6, "runCommandHook.failed", text(&good)),
        (7, "other", text(&good)),
        (8, "runCommandHook.", text(&good)),
        (9, "runCommandHook.first", text(&good)),
        (10, "runCommandHook.second", text(&link)),
    ] {
        output(build, job, &path);
    }
    let mut hydrad = place.notifier();
    let done = |count: usize| {
        format!("select count(*) = {count} from hydrad.deliveries where target = 'RunCommand' and state = 'delivered'")
    };
    // The server lets it, the project and the jobset do not.
    finish(&mut client, 1, 0);
    hydrad.wait_sql(&place.db, &done(1));
    hydrad.wait_log("its jobset does not enable dynamic RunCommand");
    client
        .batch_execute("update Jobsets set enable_dynamic_run_command = true")
        .expect("enabled");
    finish(&mut client, 2, 0);
    hydrad.wait_log("its project does not enable dynamic RunCommand");
    assert!(!ran.exists());
    client
        .batch_execute("update Projects set enable_dynamic_run_command = true")
        .expect("enabled");
    for (build, status) in [
        (9, 0),
        (10, 0),
        (3, 0),
        (4, 0),
        (5, 0),
        (6, 1),
        (7, 0),
        (8, 0),
    ] {
        finish(&mut client, build, status);
    }
    hydrad.wait_sql(&place.db, &done(10));
    let text = std::fs::read_to_string(&ran).expect("they ran");
    assert_eq!(text.matches("good\n").count(), 2, "{text}");
    assert!(
        text.contains("\"job\":\"runCommandHook.first\"") && text.contains("\"build\":10"),
        "{text}"
    );
    for why in [
        "plain is not executable",
        "link is not a file",
        "/nonexistent/x: No such file or directory",
    ] {
        hydrad.wait_log(why);
    }
    let rows = client
        .query("select job_matcher, build_id, command, exit_code from RunCommandLogs order by build_id", &[])
        .expect("rows");
    let rows: Vec<(String, i32, String, Option<i32>)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect();
    let row = |job: &str, build: i32, path: &std::path::Path| {
        (
            format!("DynamicRunCommand(runCommandHook.{job})"),
            build,
            path.display().to_string(),
            Some(0),
        )
    };
    assert_eq!(rows, [row("first", 9, &good), row("second", 10, &link)]);
    assert!(hydrad.terminate().success());
}

#[test]
fn a_build_of_a_declarative_project_makes_its_jobsets() {
    let place = Place::new("<dynamicruncommand>\nenable = 1\n</dynamicruncommand>\n");
    let mut client = place.client();
    client
        .batch_execute(
            "update Projects set declfile = 'spec.json', decltype = 'path', declvalue = '/x';
             insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath) values ('.jobsets', 'p', '', '', '')",
        )
        .expect("a declarative project");
    let mut next = 0;
    let mut built = |client: &mut Client, job: &str, current: i32, status: i32, text: &str| {
        next += 1;
        let path = place.file(&format!("spec-{next}"), text);
        let sql = "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system, isCurrent)
                   values ($1, 0, 100, (select id from Jobsets where name = '.jobsets'), $2, '/nix/store/d.drv', 'x86_64-linux', $3)";
        client
            .execute(sql, &[&next, &job, &current])
            .expect("a build");
        client
            .execute(
                "insert into BuildOutputs values ($1, 'out', $2)",
                &[&next, &path.display().to_string()],
            )
            .expect("an output");
        finish(client, next, status);
    };
    let jobsets = |client: &mut Client| -> Vec<String> {
        let sql = "select name || ' ' || enabled || hidden || ' ' || coalesce(nixExprPath, flake) from Jobsets
                   where name <> '.jobsets' order by name";
        client
            .query(sql, &[])
            .expect("rows")
            .iter()
            .map(|row| row.get(0))
            .collect()
    };
    let mut hydrad = place.notifier();
    let told = |count: usize| {
        format!("select count(*) = {count} from hydrad.deliveries where target = 'DeclarativeJobsets' and state = 'delivered'")
    };
    let spec = r#"{"new": {"nixexprinput": "src", "nixexprpath": "r.nix", "inputs": {"src": {"type": "path", "value": "/x"}}},
                   "flaky": {"type": 1, "flake": "git+https://x"}, "bad": {"colour": "red"}}"#;
    built(&mut client, "jobsets", 1, 0, spec);
    hydrad.wait_sql(&place.db, &told(1));
    // What the specification does not name is put away; what is wrong with one is told, and the others are made.
    assert_eq!(
        jobsets(&mut client),
        ["flaky 10 git+https://x", "new 10 r.nix", "s 01 f"]
    );
    let error = |client: &mut Client| -> String {
        let sql = "select coalesce(errorMsg, '') from Jobsets where name = '.jobsets'";
        client.query_one(sql, &[]).expect("a row").get(0)
    };
    assert!(
        error(&mut client).contains("‘bad’: invalid keys (colour)"),
        "{}",
        error(&mut client)
    );
    // Another job, an old build and other projects' ends change nothing.
    built(&mut client, "other", 1, 0, "{}");
    built(&mut client, "jobsets", 0, 0, "{}");
    hydrad.wait_sql(&place.db, &told(3));
    assert_eq!(jobsets(&mut client).len(), 3);
    for (status, text, why) in [
        (1, "{}", "Declarative jobset build 4 failed"),
        (0, "nonsense", "Declarative jobset build 5 made a file that cannot be used: the specification is not JSON"),
        (0, r#"{"enabled": 1}"#, "an object for each jobset"),
    ] {
        built(&mut client, "jobsets", 1, status, text);
        hydrad.eventually(why, || error(&mut client).contains(why).then_some(()));
    }
    assert_eq!(jobsets(&mut client).len(), 3);
    // A jobset that may run what it builds needs its project to let it.
    built(
        &mut client,
        "jobsets",
        1,
        0,
        r#"{"s": {"enabled": 1, "hidden": 0, "enable_dynamic_run_command": true}}"#,
    );
    hydrad.eventually("refused", || {
        error(&mut client)
            .contains("Dynamic RunCommand is not enabled")
            .then_some(())
    });
    client
        .batch_execute("update Projects set enable_dynamic_run_command = true")
        .expect("enabled");
    built(
        &mut client,
        "jobsets",
        1,
        0,
        r#"{"s": {"enabled": 1, "hidden": 0, "enable_dynamic_run_command": true}}"#,
    );
    hydrad.eventually("made", || {
        (jobsets(&mut client)[2] == "s 10 f").then_some(())
    });
    // An end of any other build is not even in the ledger for this one.
    client
        .batch_execute(
            "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system)
             values (50, 0, 100, (select id from Jobsets where name = 's'), 'x', '/nix/store/d.drv', 'x86_64-linux')",
        )
        .expect("a build");
    finish(&mut client, 50, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.events where payload = '50' and state = 'planned'",
    );
    hydrad.wait_sql(&place.db, &told(8));
    assert!(hydrad.terminate().success());
}

#[test]
fn a_specification_is_read_from_the_store_of_outputs() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let place = Place::new("");
    let cache = format!(
        "file://{}",
        place.dir.sub("cache", RunAs::Unprivileged).display()
    );
    let spec = r#"{"far": {"nixexprinput": "src", "nixexprpath": "f.nix"}}"#;
    let path = store.store(&[
        "--add",
        &place.file("spec.json", spec).display().to_string(),
    ]);
    let mut copy = store.command("nix");
    copy.args([
        "--extra-experimental-features",
        "nix-command",
        "copy",
        "--to",
        &cache,
        &path,
    ]);
    output_of(&mut copy);
    store.store(&["--delete", &path]);
    place.file("hydra.conf", &format!("store_uri = {cache}\n"));
    place.builds(1..=2);
    let mut client = place.client();
    client
        .batch_execute(&format!(
            "update Projects set declfile = 'spec.json'; update Jobsets set name = '.jobsets';
             update Builds set job = 'jobsets', isCurrent = 1;
             insert into BuildOutputs values (1, 'out', '{path}'), (2, 'out', '{path}-not')"
        ))
        .expect("a declarative project");
    let mut hydrad = place.hydrad(&["notify"]).envs(store.env()).start();
    hydrad.wait_log("notifier: active");
    finish(&mut client, 1, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from Jobsets where name = 'far' and nixExprPath = 'f.nix'",
    );
    // What cannot be read now may be there later.
    finish(&mut client, 2, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where state = 'waiting' and attempts > 0",
    );
    hydrad.wait_sql(
        &place.db,
        "select errorMsg like '%nix store cat%' from Jobsets where name = '.jobsets'",
    );
    assert!(hydrad.terminate().success());
}

#[test]
fn a_log_that_cannot_be_compressed_yet_is_compressed_later() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new("");
    let dir = place.dir.sub("build-logs", RunAs::Unprivileged);
    let dir = dir.join("ab");
    std::fs::create_dir(&dir).expect("a folder");
    let log = dir.join("c-x.drv");
    std::fs::write(&log, "what the builder said\n").expect("a log");
    RunAs::Unprivileged.give_tree(&dir);
    let mode = |mode: u32| {
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    mode(0o555);
    place.builds(1..=1);
    let mut hydrad = place.notifier();
    let payload = format!("1\t1\t{}", log.display());
    announce(&mut place.client(), "step_finished", &payload);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries
         where target = 'CompressLog' and state = 'waiting' and last_error like '%Permission denied%'",
    );
    assert!(log.exists(), "nothing is lost meanwhile");
    mode(0o755);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where target = 'CompressLog' and state = 'delivered'",
    );
    let text = output_of(
        Command::new("bzip2")
            .arg("-dc")
            .arg(dir.join("c-x.drv.bz2")),
    );
    assert_eq!(text, "what the builder said");
    assert!(!log.exists());
    assert!(hydrad.terminate().success());
}

#[test]
fn from_an_evaluation_through_a_build_to_jobsets_and_a_mail() {
    let site = Site::with_db(Pg::shared().db());
    site.configure("services = queue-runner notify\nemail_notification = 1\nnotification_sender = farm@example.org\n");
    site.machines(&Site::localhost(1));
    let folder = site.folder("decl");
    let made = site.folder("made");
    site.file("made/jobs.nix", "{ src }: { a = throw \"no a today\"; }");
    let jobsets = json!({ "made": {
        "nixexprinput": "src", "nixexprpath": "jobs.nix", "inputs": { "src": { "type": "path", "value": made } },
    } });
    site.file(
        "decl/jobs.nix",
        &format!(
            "{{ src, declInput, projectName }}: {{ jobsets = derivation {{ name = \"spec\"; system = \"{}\"; builder = \"/bin/sh\"; \
             args = [ \"-c\" \"echo '{}' > $out\" ]; }}; }}",
            common::system(),
            jobsets.to_string().replace('"', "\\\"")
        ),
    );
    site.file(
        "decl/spec.json",
        &json!({ "enabled": 1, "nixexprinput": "src", "nixexprpath": "jobs.nix",
                 "inputs": { "src": { "type": "path", "value": folder } } })
        .to_string(),
    );
    let sql = format!(
        "insert into Users (userName, emailAddress, password, emailOnError) values ('u', 'owner@x', '!', 1);
         insert into Projects (name, displayName, owner, declfile, decltype, declvalue) values ('p', 'P', 'u', 'spec.json', 'path', '{}');
         insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride) values ('p', '.jobsets', '', '', '')",
        folder.display()
    );
    site.db
        .client()
        .batch_execute(&sql)
        .expect("a declarative project");
    let sink = site.data().join("sink");
    let mut hydrad = site
        .hydrad(&["run"])
        .env("HYDRA_MAIL_SINK", sink.display().to_string())
        .start();
    hydrad.wait_log("notifier: active");
    let evaluate = |jobset: &str| {
        let ended = site
            .hydrad(&["eval-jobset", "p", jobset])
            .command()
            .output()
            .expect("it runs");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    let said = evaluate(".jobsets");
    hydrad.eventually(&format!("the jobset is made: {said}"), || {
        let rows = site.rows("select nixExprPath, enabled from Jobsets where name = 'made'");
        (rows == ["jobs.nix 1"]).then_some(())
    });
    // Its evaluation has an error, twice the same: one mail.
    for _ in 0..2 {
        evaluate("made");
        site.db
            .client()
            .batch_execute("update Jobsets set forceEval = true where name = 'made'")
            .expect("again");
    }
    hydrad.wait_sql(
        &site.db,
        "select count(*) = 1 from hydrad.deliveries d join hydrad.events e on e.id = d.event
         where e.channel = 'eval_error_changed' and d.state = 'delivered'",
    );
    let text = std::fs::read_to_string(&sink).expect("a mail");
    assert_eq!(
        text.matches("Subject: Hydra p:made evaluation error")
            .count(),
        1,
        "{text}"
    );
    assert!(
        text.contains("To: owner@x") && text.contains("no a today"),
        "{text}"
    );
    assert!(hydrad.terminate().success());
}
