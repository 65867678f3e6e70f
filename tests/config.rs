//! hydra.conf, the settings and the machines file, from the outside: text in, values out.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hydrad::config::hydra_conf::{self, Document, HydraConfError};
use hydrad::config::machines::{
    parse, parse_file, shrank, LocalHost, Machines, MachinesError, MachinesFiles, MachinesFromEnv,
};
use hydrad::config::settings::{
    commented_conf, survey, ConfigError, Override, Service, Settings, Source, Verdict, DEFINITIONS,
};
use proptest::prelude::*;

fn conf_files(files: &[(&str, &str)]) -> Result<Document, HydraConfError> {
    let all: HashMap<PathBuf, Vec<u8>> = files
        .iter()
        .map(|(name, text)| (PathBuf::from(name), text.as_bytes().to_vec()))
        .collect();
    let open = |path: &Path| {
        let found = all.get(path).cloned();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    let (main, text) = files[0];
    hydra_conf::parse(Path::new(main), text.as_bytes(), &open)
}

fn conf(text: &str) -> Result<Document, HydraConfError> {
    conf_files(&[("hydra.conf", text)])
}

fn get(text: &str, key: &str) -> Option<String> {
    conf(text).unwrap().root.get(key).map(|a| a.text.clone())
}

#[test]
fn values_are_read_as_config_general_reads_them() {
    for (text, expected) in [
        ("key = value", "value"),
        ("key value", "value"),
        ("key=value", "value"),
        ("  key\t=   value  ", "value"),
        ("key = \"two words \"", "two words "),
        ("key = 'kept'", "'kept'"),
        ("key = a=b", "a=b"),
        ("key a = b", "a = b"),
        ("key =", ""),
        ("key", ""),
        ("key = http://x/#frag", "http://x/"),
        ("key = http://x/\\#frag", "http://x/#frag"),
        ("key = a \\\"b\\\"", "a \"b\""),
        ("key = C:\\dir", "C:\\dir"),
        ("key = a /* gone */b", "ab"),
        ("key = file:///nix/*", "file:///nix/*"),
        ("/* a\nkey = no\n*/\nkey = yes", "yes"),
        ("/* one */\nkey = yes", "yes"),
        ("key = one \\\n   two \\\n three", "one two three"),
        ("key = one \\\n# comment\n two", "one two"),
        ("key = <<END\n  a # b\n    c\n  END\n", "a # b\n  c"),
        ("key <<END\na\nEND", "a"),
        ("key = 1\nkey = 2", "2"),
        ("key = $HOME", "$HOME"),
        ("key = dos\r\n", "dos"),
        ("\u{feff}key = bom", "bom"),
        ("key = \"", "\""),
    ] {
        assert_eq!(get(text, "key").as_deref(), Some(expected), "{text:?}");
    }
    assert_eq!(get("Key = 1", "key"), None, "case counts");
}

#[test]
fn blocks_nest_repeat_and_carry_arguments() {
    let text = "<a>\n x = 1\n <b arg one>\n y = 2\n </b>\n</a>\n<a>\n</a>\n\
                <\"q r\" \"s t\">\n</q>\n<empty/>\n";
    let document = conf(text).unwrap();
    let a: Vec<_> = document.root.blocks_named("a").collect();
    assert_eq!(a.len(), 2);
    assert_eq!(a[0].get("x").unwrap().text, "1");
    let b = a[0].blocks_named("b").next().unwrap();
    assert_eq!(b.argument.as_deref(), Some("arg one"));
    assert_eq!(b.get("y").unwrap().at.to_string(), "hydra.conf:4");
    let q = document.root.blocks_named("q r").next().unwrap();
    assert_eq!(q.argument.as_deref(), Some("s t"));
    assert_eq!(document.root.blocks_named("empty").count(), 1);
    assert_eq!(document.root.blocks_named("A").count(), 0);
    // `</q>` closes `<q r>`: read, but remarked upon.
    assert_eq!(document.remarks.len(), 1);
    assert!(document.root.get("x").is_none());
}

#[test]
fn includes_are_relative_to_their_file_and_keep_their_lines() {
    let main = "a = 1\nInclude sub/one\n<<include /abs>>\nIncludeOptional nope\n";
    let document = conf_files(&[
        ("/etc/hydra.conf", main),
        ("/etc/sub/one", "b = 2\n<<include two>>\n"),
        ("/etc/sub/two", "\nc = 3\n"),
        ("/abs", "d = 4\n"),
    ])
    .unwrap();
    let at = |key| document.root.get(key).unwrap().at.to_string();
    assert_eq!(at("a"), "/etc/hydra.conf:1");
    assert_eq!(at("b"), "/etc/sub/one:1");
    assert_eq!(at("c"), "/etc/sub/two:2");
    assert_eq!(at("d"), "/abs:1");
    assert_eq!(document.files.len(), 4);
    // The same file may be included twice, but not by itself.
    conf_files(&[("/m", "include /x\ninclude /x\n"), ("/x", "a = 1\n")]).unwrap();
    let cycle = conf_files(&[("/a", "include /b\n"), ("/b", "\ninclude /a\n")]);
    assert!(matches!(cycle, Err(HydraConfError::IncludeCycle { at, .. }) if at.line == 2));
}

#[test]
fn errors_name_file_and_line() {
    for (text, expected) in [
        (
            "a = 1\nInclude nope\n",
            "hydra.conf:2: cannot read the included file nope",
        ),
        ("<a>\n", "hydra.conf:1: block <a> has no </a>"),
        (
            "\n</a>\n",
            "hydra.conf:2: </a> closes a block that was never opened",
        ),
        (
            "k = <<X\nbody\n",
            "hydra.conf:1: the here-document of `k` has no closing line `X`",
        ),
    ] {
        let error = conf(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    let none = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
    let error = hydra_conf::parse(Path::new("c"), b"a = 1\nb = \xff\n", &none);
    assert!(matches!(error, Err(HydraConfError::NotUtf8 { at }) if at.line == 2));
}

#[test]
fn depth_and_number_of_files_are_bounded() {
    let deep = "<a>\n".repeat(100_000);
    let error = conf(&deep);
    assert!(matches!(error, Err(HydraConfError::BlockDepth { .. })));
    // Each file includes the next one twice: a million files, if nobody counted.
    let texts: Vec<(String, String)> = (0..20)
        .map(|i| (format!("/{i}"), format!("include /{0}\n", i + 1).repeat(2)))
        .collect();
    let mut files: Vec<(&str, &str)> = texts.iter().map(|(n, t)| (&n[..], &t[..])).collect();
    files.push(("/20", ""));
    let error = conf_files(&files);
    assert!(matches!(error, Err(HydraConfError::TooManyFiles { .. })));
}

#[test]
fn what_the_cpp_programs_read_otherwise_is_named() {
    let main = "a = 1\nb two\n<statsd>\n port = 8125\n</statsd>\nq = \"quoted\"\n\
                include /i\nsame = x # y\n";
    let document = conf_files(&[("/c", main), ("/i", "i = 5\n")]).unwrap();
    let keys = ["a", "b", "port", "q", "i", "same", "absent"];
    let differences = hydra_conf::flat_differences(&document, &keys);
    let found: Vec<(&str, bool, bool)> = differences
        .iter()
        .map(|d| (d.key.as_str(), d.flat.is_some(), d.used.is_some()))
        .collect();
    let expected = [
        ("b", false, true),
        ("port", true, false),
        ("q", true, true),
        ("i", false, true),
    ];
    assert_eq!(found, expected);
    assert!(differences[1].to_string().contains("line 4"));
}

/// Lines a hostile or clumsy author might write.
fn line() -> impl Strategy<Value = String> {
    let words = [
        "<a>",
        "</a>",
        "<a/>",
        "k = <<E",
        "E",
        "k = v \\",
        "/*",
        "*/",
        "/*/",
        "<>",
        "</>",
        "\"",
        "=",
        "include hydra.conf",
        "<\"a\" \"b\">",
    ];
    let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    prop_oneof!["[ -~]{0,40}", "\\PC{0,20}", prop::sample::select(words)]
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let open = |_: &Path| Ok(bytes.clone());
        // A value or an error: a panic fails the test.
        drop(hydra_conf::parse(Path::new("/c"), &bytes, &open));
        drop(parse(&String::from_utf8_lossy(&bytes)));
    }

    #[test]
    fn any_lines_are_parsed_or_refused(lines in prop::collection::vec(line(), 0..30)) {
        let text = lines.join("\n");
        if let Ok(document) = conf(&text) {
            for a in &document.root.assignments {
                prop_assert!(a.at.line as usize <= lines.len());
            }
        }
        let (_, errors) = parse(&text);
        for error in errors {
            prop_assert!(error.line_no as usize <= lines.len());
        }
    }

    #[test]
    fn any_machine_columns_are_parsed_or_refused(
        columns in prop::collection::vec("[-@:?&=%\\[\\]/a-zA-Z0-9.,+]{1,12}", 1..10)
    ) {
        // An absolute path behind `@` is a file to include, and a missing one only a doubt.
        prop_assume!(!columns[0].starts_with("@/"));
        let (machines, errors) = parse(&columns.join(" "));
        prop_assert_eq!(machines.len() + errors.len(), 1);
        for machine in &machines {
            prop_assert!(machine.speed_factor > 0.0 && machine.speed_factor.is_finite());
            prop_assert!(!machine.ssh_target().starts_with('-') && !machine.host.is_empty());
            prop_assert!(machine.supported.is_superset(&machine.mandatory));
            prop_assert_eq!(&machine.name, &columns[0]);
        }
    }

    #[test]
    fn a_written_value_comes_back(
        value in "[a-zA-Z0-9_./:,+@-]([a-zA-Z0-9_./:,+@ -]{0,30}[a-zA-Z0-9_.:,+@-])?"
    ) {
        prop_assert_eq!(get(&format!("key = {value}"), "key"), Some(value.clone()));
        prop_assert_eq!(get(&format!("key = \"{value}\""), "key"), Some(value));
    }
}

/// A HYDRA_DATA folder with a hydra.conf.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(text: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hydra.conf"), text).unwrap();
        Place { dir }
    }

    fn env(&self) -> impl Fn(&str) -> Option<String> + '_ {
        |name| match name {
            "HYDRA_DATA" => Some(self.dir.path().display().to_string()),
            "LOGNAME" => Some("runner".to_owned()),
            _ => None,
        }
    }

    fn load(&self) -> Result<Settings, ConfigError> {
        Settings::load(&self.env(), &[])
    }
}

#[test]
fn defaults_without_a_file() {
    let place = Place::new("");
    fs::remove_file(place.dir.path().join("hydra.conf")).unwrap();
    let s = place.load().unwrap();
    assert_eq!(s.services, [Service::QueueRunner]);
    assert_eq!(s.max_db_connections, 16);
    assert_eq!(s.max_output_size_bytes, 2 << 30);
    assert_eq!(s.max_log_size_bytes, 64 << 20);
    assert_eq!(s.max_unsupported_time, Duration::ZERO);
    let roots = "/nix/var/nix/gcroots/per-user/runner/hydra-roots";
    assert_eq!(s.gc_roots_dir, Path::new(roots));
    assert_eq!(s.store_uri, None);
    assert!(!s.use_substitutes);
    let metrics = s.queue_runner_metrics_address.unwrap();
    assert_eq!(metrics.to_string(), "127.0.0.1:9198");
    assert_eq!(s.status_address.unwrap().to_string(), "127.0.0.1:9199");
    assert_eq!(s.deadlines.substitute_idle, Duration::from_secs(7200));
    assert_eq!(s.deadlines.shutdown, Duration::from_secs(10));
    assert_eq!(s.connection_age, Duration::from_secs(900));
    assert_eq!(s.max_concurrent_notifications, 2);
    assert!(s.max_local_worker_threads >= 2);
    assert_eq!(s.config_path, place.dir.path().join("hydra.conf"));
    // Without any environment at all.
    let bare = Settings::load(&|_| None, &[]).unwrap();
    assert_eq!(bare.data_dir, Path::new("/var/lib/hydra"));
}

#[test]
fn settings_are_typed_and_say_where_they_stand() {
    let place = Place::new(
        "max_db_connections = 5\nmax_log_size = 1M\nconnect_timeout = 2m\nuse-substitutes = 1\n\
         status_address = [::1]:80\nqueue_runner_metrics_address = none\nssh_options = -v -C\n\
         store_uri = s3://bucket?x=1\\#2\ndatabase = dbi:Pg:password=x\n",
    );
    let s = place.load().unwrap();
    assert_eq!(s.max_db_connections, 5);
    assert_eq!(s.max_log_size_bytes, 1 << 20);
    assert_eq!(s.deadlines.connect, Duration::from_secs(120));
    assert!(s.use_substitutes);
    assert_eq!(s.status_address.unwrap().to_string(), "[::1]:80");
    assert_eq!(s.queue_runner_metrics_address, None);
    assert_eq!(s.ssh_options, ["-v", "-C"]);
    assert_eq!(s.store_uri.as_deref(), Some("s3://bucket?x=1#2"));
    assert_eq!(s.database.unwrap().0, "dbi:Pg:password=x");

    let option = "--prometheus-address".to_owned();
    let over = Override {
        key: "queue_runner_metrics_address",
        value: "0.0.0.0:1".to_owned(),
        option: option.clone(),
    };
    let found = survey(&place.env(), &[over]).unwrap();
    let row = |key: &str| found.rows.iter().find(|r| r.key == key).unwrap();
    let metrics = row("queue_runner_metrics_address");
    assert_eq!(metrics.source, Source::CommandLine(option));
    assert!(row("max_log_size")
        .source
        .to_string()
        .ends_with("hydra.conf:2"));
    assert_eq!(row("max_output_size").source, Source::Default);
    assert_eq!(row("max_db_connections").verdict, Verdict::Used);
    assert!(!row("database").value.contains("password"));
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (text, expected) in [
        (
            "max_db_connections = many",
            "a whole number from 2 to 10000",
        ),
        ("max_db_connections = 1", "a whole number from 2 to 10000"),
        ("max_db_connections =", "a whole number from 2 to 10000"),
        ("max_log_size = 64Q", "a number of bytes"),
        ("max_log_size = 99999999999T", "a number of bytes"),
        ("stop_timeout = -1", "a number of seconds"),
        ("use-substitutes = yes", "true, 1, false or 0"),
        ("gc_roots_dir = relative", "an absolute path"),
        ("status_address = 9199", "HOST:PORT"),
        (
            "services = queue-runner web",
            "queue-runner, evaluator, notify",
        ),
        ("max_concurrent_evals = many", "a whole number from 0"),
        ("store_mode = direct", "deprecated, please use store_uri"),
        ("xxx-jobset-repeats = a:b", "project:jobset:N"),
        ("xxx-jobset-repeats = a:b:101", "N up to 100"),
    ] {
        let error = Place::new(&format!("\n{text}\n")).load().unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(error.contains("hydra.conf:2"), "{text}: {error}");
    }
    let both = Place::new("stop_timeout = x\nmax_log_size = y\n").load();
    assert!(matches!(both, Err(ConfigError::Several(all)) if all.len() == 2));
}

#[test]
fn foreign_settings_are_judged_and_their_values_never_shown() {
    let place = Place::new(
        "xxx-jobset-repeats = a:b:1\n\
         google_client_id = secret\nmax_concurrent_evals = 3\nbinary_cache_dir = /x\n\
         max_db_conections = 3\n<s3backup>\n name = b\n</s3backup>\n<githubstatus>\n\
         </githubstatus>\n",
    );
    let found = survey(&place.env(), &[]).unwrap();
    assert!(found.errors.is_empty(), "{:?}", found.errors);
    let row = |key: &str| found.rows.iter().find(|r| r.key == key).unwrap();
    for (key, verdict) in [
        ("xxx-jobset-repeats", Verdict::Used),
        ("google_client_id", Verdict::Ignored),
        ("max_concurrent_evals", Verdict::Used),
        ("binary_cache_dir", Verdict::Deprecated),
        ("max_db_conections", Verdict::Unknown),
        ("<githubstatus>", Verdict::Ignored),
        // Hydra's own notifier goes on making backups; hydrad is not that service.
        ("<s3backup>", Verdict::NotYetUsed),
    ] {
        assert_eq!(row(key).verdict, verdict, "{key}");
    }
    assert!(!row("google_client_id").value.contains("secret"));
    assert!(row("max_db_conections")
        .note
        .contains("`max_db_connections`"));
    assert!(row("<s3backup>").note.contains("hydra-notify"));
}

#[test]
fn who_has_a_database_of_its_own_does_everybodys_work_and_nobody_else_unasked() {
    let services = |conf: &str, with_state: bool| {
        let place = Place::new(conf);
        let state = Override {
            key: "data_dir",
            value: place.dir.path().display().to_string(),
            option: "--state".into(),
        };
        let overrides = if with_state { vec![state] } else { Vec::new() };
        let settings = Settings::load(&place.env(), &overrides).unwrap();
        settings.services
    };
    let all = [Service::QueueRunner, Service::Evaluator, Service::Notify];
    assert_eq!(services("", true), all);
    assert_eq!(services("", false), [Service::QueueRunner]);
    let one = services("services = evaluator\n", true);
    assert_eq!(one, [Service::Evaluator]);
}

/// `HYDRAD_TEST_WRITE=1` writes it.
#[test]
fn the_example_file_is_the_commented_one() {
    const TAIL: &str = "\n# ---- What this installation sets\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/hydra.conf");
    let file = fs::read_to_string(&path).unwrap();
    let (head, tail) = file.split_once(TAIL).expect("what the installation sets");
    if std::env::var_os("HYDRAD_TEST_WRITE").is_some() {
        fs::write(&path, format!("{}{TAIL}{tail}", commented_conf())).unwrap();
        return;
    }
    // Wherever its lines are broken.
    let words = |text: &str| -> Vec<String> {
        let words = text.split_whitespace().filter(|word| *word != "#");
        words.map(str::to_owned).collect()
    };
    let (had, wanted) = (words(head), words(&commented_conf()));
    let same = had.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let around = |words: &[String]| {
        words
            .iter()
            .skip(same)
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(around(&had), around(&wanted));
}

#[test]
fn the_commented_file_shows_every_setting_and_changes_none() {
    let text = commented_conf();
    assert_eq!(conf(&text).unwrap().root.assignments, []);
    for definition in DEFINITIONS.iter().filter(|d| !d.help.is_empty()) {
        assert!(text.contains(&format!("#{} =", definition.key)));
    }
    // Uncommented, each line with a value is accepted and means its default.
    let uncommented: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix('#'))
        .filter(|l| !l.starts_with(' ') && !l.ends_with(" ="))
        .collect();
    assert!(uncommented.len() > 20);
    let place = Place::new("");
    let defaults = place.load().unwrap();
    fs::write(&defaults.config_path, uncommented.join("\n")).unwrap();
    assert_eq!(place.load().unwrap(), defaults);
}

#[test]
fn machines_lines() {
    let (machines, errors) = parse(
        "# comment\n\
         root@one x86_64-linux,i686-linux /key 4 2.5 kvm,big-parallel benchmark \
         c3NoLWVkMjU1MTkgQUFBQQ==\n\
         ssh://two:2222?remote-store=local%3Froot%3D/x&compress=true aarch64-linux\n\
         ssh-ng://u@[fe80::1]:22 - - 0 0 - -; localhost x86_64-linux - 2 # and more\n\
         \n",
    );
    assert_eq!(errors, []);
    let [one, two, three, local] = machines.as_slice() else {
        panic!("{machines:?}");
    };
    assert_eq!(one.name, "root@one");
    assert_eq!((one.ssh_target().as_str(), one.line_no), ("root@one", 2));
    assert_eq!((one.slots, one.speed_factor), (4, 2.5));
    assert_eq!(one.ssh_key.as_deref(), Some(Path::new("/key")));
    let supported: Vec<&str> = one.supported.iter().map(String::as_str).collect();
    assert_eq!(supported, ["benchmark", "big-parallel", "kvm"]);
    assert_eq!(one.mandatory.len(), 1);
    assert_eq!(one.host_key.as_deref(), Some("ssh-ed25519 AAAA"));
    let name = "ssh://two:2222?remote-store=local%3Froot%3D/x&compress=true";
    assert_eq!(two.name, name);
    assert_eq!((two.host.as_str(), two.port), ("two", Some(2222)));
    assert_eq!(two.remote_store.as_deref(), Some("local?root=/x"));
    assert!(two.compress);
    assert_eq!((two.slots, two.speed_factor), (1, 1.0));
    assert_eq!((three.host.as_str(), three.port), ("fe80::1", Some(22)));
    assert_eq!((three.slots, three.speed_factor), (0, 1.0));
    assert!(three.systems.is_empty());
    assert!(local.is_localhost && !one.is_localhost);
}

#[test]
fn localhost_is_recognised_as_hydra_does() {
    for (name, expected) in [
        ("localhost", true),
        ("ssh://localhost", true),
        ("ssh-ng://localhost", true),
        ("auto", true),
        ("daemon", true),
        ("local", true),
        ("unix:///run/x", true),
        ("root@localhost", false),
        ("localhost:22", false),
        ("ssh://localhost?compress=true", false),
        ("host", false),
    ] {
        let (machines, errors) = parse(&format!("{name} x86_64-linux"));
        assert_eq!(errors, [], "{name}");
        assert_eq!(machines[0].is_localhost, expected, "{name}");
    }
}

#[test]
fn bad_machine_lines_are_numbered_and_the_others_work() {
    let bad = [
        ("h x - many", "number of slots (fourth column) is `many`"),
        ("h x - -1", "number of slots"),
        ("h x - 99999999999", "number of slots"),
        ("h x - 1 fast", "speed factor (fifth column) is `fast`"),
        ("h x - 1 -2", "speed factor"),
        ("h x - 1 NaN", "speed factor"),
        ("h x - 1 inf", "speed factor"),
        ("h x - 1 1 - - !!", "it is not base64"),
        ("h x - 1 1 - - /w==", "not text"),
        ("https://h x", "`https://` is not a way to reach a machine"),
        ("/store x", "a store path or folder is not a machine"),
        ("@relative", "give the absolute path"),
        ("ssh://@h x", "no user name"),
        ("ssh:// x", "no host name"),
        ("ssh://[]:22 x", "no host name"),
        ("h:0 x", "`0` is not a port"),
        ("h:99999 x", "`99999` is not a port"),
        ("-oProxyCommand=evil x", "cannot start with `-`"),
        ("-l@h x", "cannot start with `-`"),
        ("ssh://h?remote-store=%zz x", "hexadecimal digits"),
    ];
    for (line, expected) in bad {
        let (machines, errors) = parse(&format!("good x\n{line}\nfine y\n"));
        let names: Vec<&str> = machines.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["good", "fine"], "{line}");
        assert_eq!(errors.len(), 1, "{line}");
        assert_eq!(errors[0].line_no, 2, "{line}");
        assert!(errors[0].reason.contains(expected), "{line}: {}", errors[0]);
    }
}

#[test]
fn of_two_machines_with_one_name_the_last_counts() {
    let files = |path: &Path| match path.to_str() {
        Some("/inc") => Ok(b"a x - 3\n@/inc\n@/gone".to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let found = parse_file(Path::new("/m"), "a x - 1\nb x\n@/inc\n", &files);
    let named = |m: &hydrad::config::MachineLine| (m.name.clone(), m.slots);
    let names: Vec<(String, u32)> = found.machines.iter().map(named).collect();
    assert_eq!(names, [("b".to_owned(), 1), ("a".to_owned(), 3)]);
    assert_eq!(found.machines[1].file, Path::new("/inc"));
    let warnings: Vec<String> = found.warnings.iter().map(|w| w.to_string()).collect();
    let expected = [
        "/inc:3: /gone does not exist",
        "/m:1: machine `a` is listed again further down; the last line counts",
    ];
    assert_eq!(warnings, expected);
    // The cycle is a wrong line, no more.
    assert_eq!(found.errors.len(), 1);
    let includes = [PathBuf::from("/inc"), PathBuf::from("/gone")];
    assert_eq!(found.includes, includes);
    assert_eq!(found.unfinished, [PathBuf::from("/inc")]);
}

#[test]
fn a_list_that_loses_more_than_half_shrank() {
    let list = |text: &str| parse(text).0;
    let old = list("a x\nb x\nc x\nd x\n");
    for (new, expected) in [
        ("", true),
        ("a x\n", true),
        ("a x\nb x\n", false),
        ("e x\nf x\ng x\nh x\n", true),
        ("a x\nb x\nc x\nd x\ne x\n", false),
    ] {
        assert_eq!(shrank(&old, &list(new)), expected, "{new:?}");
    }
    assert!(!shrank(&[], &[]));
    assert!(!shrank(&[], &old));
}

fn local() -> LocalHost {
    LocalHost::of_this_host(Some(3), vec!["kvm".to_owned()])
}

fn names(machines: &Machines) -> Vec<&str> {
    machines.machines.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn this_host_alone_only_without_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let default = dir.path().join("machines");
    for unset in [None, Some("")] {
        let mut files = MachinesFiles::from_env(unset, &default, local());
        assert!(matches!(files.from, MachinesFromEnv::ThisHost(_)));
        let found = files.read().unwrap();
        assert_eq!(names(&found), ["localhost"]);
        assert_eq!(found.machines[0].slots, 3);
        assert!(found.machines[0].supported.contains("kvm"));
        assert!(!files.changed().unwrap());
    }
    // Named but missing: no machines, nothing aborted, noticed when it appears.
    let missing = default.display().to_string();
    let mut files = MachinesFiles::from_env(Some(&missing), &default, local());
    let found = files.read().unwrap();
    assert!(found.machines.is_empty());
    assert_eq!(found.warnings.len(), 1);
    assert!(!files.changed().unwrap());
    fs::write(&default, "a x\n").unwrap();
    assert!(files.changed().unwrap());
    assert_eq!(names(&files.read().unwrap()), ["a"]);
    // The default file exists now, so this host is not added.
    let mut files = MachinesFiles::from_env(None, &default, local());
    assert_eq!(names(&files.read().unwrap()), ["a"]);
}

#[test]
fn a_derivation_prefers_this_host_only_if_it_could_be_built_here() {
    let mut host = local();
    host.systems = vec!["x86_64-linux".to_owned()];
    host.extra_platforms = vec!["armv7l-linux".to_owned()];
    let kvm = ["kvm".to_owned()];
    let other = ["kvm".to_owned(), "big-parallel".to_owned()];
    assert!(host.could_build("x86_64-linux", &[]));
    assert!(host.could_build("armv7l-linux", &kvm));
    assert!(!host.could_build("aarch64-linux", &[]));
    assert!(!host.could_build("x86_64-linux", &other));
    host.slots = 0;
    assert!(!host.could_build("x86_64-linux", &[]));
    assert!(host.could_build("builtin", &kvm));
    assert!(!host.could_build("builtin", &other));
}

#[test]
fn changes_are_seen_in_named_and_included_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let included = path("inc");
    fs::write(path("one"), format!("a x\n@{}\n", included.display())).unwrap();
    fs::write(path("two"), "b x\n").unwrap();
    let both = format!("{}:{}", path("one").display(), path("two").display());
    let nowhere = Path::new("/nonexistent");
    let mut files = MachinesFiles::from_env(Some(&both), nowhere, local());
    assert!(files.changed().unwrap(), "never read");
    assert_eq!(names(&files.read().unwrap()), ["a", "b"]);
    assert!(!files.changed().unwrap());
    fs::write(&included, "c x\n").unwrap();
    assert!(files.changed().unwrap(), "an included file appeared");
    assert_eq!(names(&files.read().unwrap()), ["a", "c", "b"]);
    // Replaced by a file of the same size: another inode.
    fs::write(path("new"), "d x\n").unwrap();
    fs::rename(path("new"), path("two")).unwrap();
    assert!(files.changed().unwrap());
    assert_eq!(names(&files.read().unwrap()), ["a", "c", "d"]);
    // A folder cannot be read as a file: an error, and still "changed" afterwards.
    fs::remove_file(path("two")).unwrap();
    fs::create_dir(path("two")).unwrap();
    let error = files.read().unwrap_err();
    assert!(matches!(error, MachinesError::Unreadable { .. }), "{error}");
    assert!(files.changed().unwrap());
}
