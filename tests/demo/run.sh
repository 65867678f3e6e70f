#!/usr/bin/env bash
# The demo: a git repository with tests/demo/project.nix is declared as a project of hydrad's, evaluated, and built on two
# machines; then a commit (tests/demo/update.patch) breaks one job and mends another. Each time what the database says is
# compared with tests/demo/expected.tsv and expected-after-update.tsv. A webhook is told of all of it. Everything lives in a
# directory under /tmp: an embedded PostgreSQL, a Nix store, an sshd on the loopback interface that plays a build machine with a
# store of its own. Nothing of this machine's is touched.
#
#   run.sh [--keep] [--binary PROGRAM]
#     --keep    leave the directory for looking around (it stays after a failure anyway)
#     --binary  use this hydrad instead of building one
# Exits with 0 only if every job ended as expected.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

keep='' binary=''
while [ $# -gt 0 ]; do
    case $1 in
        --keep) keep=1 ;;
        --binary) binary=${2:?--binary wants a program}; shift ;;
        *) echo "usage: $0 [--keep] [--binary PROGRAM]" >&2; exit 2 ;;
    esac
    shift
done
step() { echo "== demo: $*"; }
die() { echo "demo: $*" >&2; exit 1; }

tests/scripts/deps.sh
if [ -z "$binary" ]; then
    step "compiling hydrad (a few minutes the first time)"
    cargo build --release --quiet
    binary=target/release/hydrad
fi
[ -x "$binary" ] || die "$binary does not exist"

# ---- a place, and who owns it. hydrad and PostgreSQL do not run as root; the build machine runs as whoever we are.
dir=$(mktemp -d /tmp/hydrad-demo.XXXXXX)
chmod 755 "$dir"
me=$(id -un) owner=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    owner=$(getent passwd postgres nobody | head -n 1 | cut -d: -f1)
    as_owner=(setpriv --reuid="$owner" --regid="$(id -g "$owner")" --init-groups)
else
    as_owner=()
fi

pids=() verdict=failed
finish() {
    local pid
    set +e
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
    if [ -z "$keep" ] && [ "$verdict" = good ]; then
        chmod -R u+w "$dir" && rm -rf "$dir"
    else
        echo "kept: $dir (hydrad.log, told.json, state/, store/, builder/, project/, ssh/)"
    fi
}
trap finish EXIT
trap 'exit 130' INT TERM

step "two Nix stores and an sshd in $dir"
mkdir -p "$dir"/{store,var/log/nix,conf,home,project,ssh,builder/{store,var/log/nix,conf,home,bin}}
conf="build-users-group =
substituters =
sandbox = false"
printf '%s\nsystem-features = demo-local\n' "$conf" >"$dir/conf/nix.conf"
printf '%s\nsystem-features = demo-ssh\n' "$conf" >"$dir/builder/conf/nix.conf"
cp "$binary" "$dir/hydrad"
cp -r tests/demo/project.nix tests/demo/src "$dir/project/"

# The build machine has the same store directory, but other files in it: they are mounted there for its programs alone.
# Where namespaces are forbidden it shares the store; then nothing needs to be copied, and the demo says so.
unshare_words=(unshare -m)
[ "$(id -u)" -eq 0 ] || unshare_words=(unshare -Urm)
if "${unshare_words[@]}" mount --bind "$dir/builder/store" "$dir/store" 2>/dev/null; then
    builder_state=$dir/builder/var
    cat >"$dir/builder/bin/nix-store" <<END
#!/bin/sh
exec ${unshare_words[*]} sh -c 'mount --bind $dir/builder/store $dir/store && exec "\$@"' sh $(command -v nix-store) "\$@"
END
    chmod 755 "$dir/builder/bin/nix-store"
else
    echo "demo: no mount namespaces here; the build machine shares the store, so no path is copied"
    builder_state=$dir/var
fi

ssh-keygen -q -t ed25519 -N '' -C demo-host -f "$dir/builder/host_key"
ssh-keygen -q -t ed25519 -N '' -C demo-user -f "$dir/ssh/key"
cp "$dir/ssh/key.pub" "$dir/builder/authorized_keys"
use_pam=no
if [ "$(id -u)" -eq 0 ]; then
    mkdir -p /run/sshd
    # Without PAM sshd turns away an account whose password is locked.
    ! grep -q "^$me:!" /etc/shadow || use_pam=yes
fi
port=
for ((attempt = 0; attempt < 20; attempt++)); do
    try=$((20000 + RANDOM % 12000))
    cat >"$dir/builder/sshd_config" <<END
Port $try
ListenAddress 127.0.0.1
HostKey $dir/builder/host_key
AuthorizedKeysFile $dir/builder/authorized_keys
PidFile none
StrictModes no
UsePAM $use_pam
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
MaxStartups 100
SetEnv PATH=$dir/builder/bin:$PATH NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$builder_state NIX_LOG_DIR=$builder_state/log/nix NIX_CONF_DIR=$dir/builder/conf NIX_REMOTE=local XDG_CACHE_HOME=$dir/builder/home
END
    : >"$dir/builder/sshd.log"
    "$(command -v sshd)" -D -e -f "$dir/builder/sshd_config" 2>>"$dir/builder/sshd.log" &
    sshd=$!
    until grep -q 'Server listening' "$dir/builder/sshd.log" || ! kill -0 "$sshd" 2>/dev/null; do sleep 0.02; done
    if kill -0 "$sshd" 2>/dev/null; then
        port=$try
        pids+=("$sshd")
        break
    fi
done
[ -n "$port" ] || die "sshd does not start: $(tail -n 3 "$dir/builder/sshd.log")"
echo "demo-builder $(cut -d' ' -f1,2 "$dir/builder/host_key.pub")" >"$dir/ssh/known_hosts"
cat >"$dir/ssh/config" <<END
Host demo-builder
  HostName 127.0.0.1
  HostKeyAlias demo-builder
  Port $port
  User $me
  IdentityFile $dir/ssh/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile $dir/ssh/known_hosts
  GlobalKnownHostsFile /dev/null
END

system=$(NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$dir/var nix-instantiate --eval -E builtins.currentSystem 2>/dev/null | tr -d '"')
cat >"$dir/machines" <<END
localhost     $system - 2 1 demo-local -
demo-builder  $system - 2 1 demo-ssh   -
END
step "a git repository, and a webhook that records what it is told"
/usr/bin/python3 -u tests/demo/recorder.py >"$dir/told.json" 2>"$dir/recorder.log" </dev/null &
pids+=($!)
until [ -s "$dir/told.json" ]; do
    kill -0 "${pids[-1]}" 2>/dev/null || die "the webhook does not start: $(tail -n 3 "$dir/recorder.log")"
    sleep 0.1
done
# No ports: another hydrad may be running here.
cat >"$dir/hydra.conf" <<END
services = queue-runner evaluator notify
queue_runner_metrics_address = none
status_address = none
evaluator_address = none
<webhook>
  name = recorder
  url = http://127.0.0.1:$(head -n 1 "$dir/told.json")/
  events = evalAdded buildFinished
</webhook>
END
# The jobsets of the project are declared in the repository itself; what the project is, in a file for \`hydrad apply\`.
cat >"$dir/project/jobsets.json" <<END
{ "main": { "enabled": 1, "hidden": false, "description": "The demo", "checkinterval": 0, "schedulingshares": 100,
            "enableemail": false, "emailoverride": "", "keepnr": 3, "nixexprinput": "src", "nixexprpath": "project.nix",
            "inputs": { "src": { "type": "git", "value": "$dir/project main", "emailresponsible": false } } } }
END
cat >"$dir/demo.toml" <<END
[projects.demo]
displayname = "The demo"
owner = "demo"
declarative = { file = "jobsets.json", type = "git", value = "$dir/project main" }
END

if [ "$owner" != "$me" ]; then
    chown -R "$owner" "$dir"
    chown -R "$me" "$dir/builder"
fi
# A prefix for commands, not a function: so the pid of a command in the background is its own.
in_demo=("${as_owner[@]}" env -i -C "$dir" PATH="$PATH" HOME="$dir/home" USER="$owner" LOGNAME="$owner" LC_ALL=C.UTF-8
    RUST_LOG="${RUST_LOG:-info}" RUST_BACKTRACE=1
    NIX_STORE_DIR="$dir/store" NIX_STATE_DIR="$dir/var" NIX_LOG_DIR="$dir/var/log/nix" NIX_CONF_DIR="$dir/conf"
    NIX_REMOTE=local NIX_REMOTE_SYSTEMS="$dir/machines" NIX_SSHOPTS="-F $dir/ssh/config" HYDRA_CONFIG="$dir/hydra.conf")
"${in_demo[@]}" ssh -F "$dir/ssh/config" demo-builder nix-store --version >/dev/null || die "cannot log in to the build machine (see $dir/builder/sshd.log)"

git=("${in_demo[@]}" GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.org GIT_COMMITTER_NAME=demo
    GIT_COMMITTER_EMAIL=demo@example.org git -C "$dir/project")
"${git[@]}" init --quiet
"${git[@]}" symbolic-ref HEAD refs/heads/main
"${git[@]}" add .
"${git[@]}" commit --quiet --message "A library that greets"

step "starting hydrad with a database of its own"
"${in_demo[@]}" "$dir/hydrad" run --state "$dir/state" >"$dir/hydrad.log" 2>&1 </dev/null &
pids+=($!)
hydrad=$!
for _ in $(seq 120); do
    if "${in_demo[@]}" "$dir/hydrad" status --state "$dir/state" >/dev/null 2>&1; then break; fi
    kill -0 "$hydrad" 2>/dev/null || { tail -n 20 "$dir/hydrad.log" >&2; die "hydrad does not start"; }
    sleep 0.5
done

# hydrad COMMAND ARGUMENT...: ask the hydrad of this demo.
ask() { "${in_demo[@]}" RUST_LOG=warn timeout 600 "$dir/hydrad" "$1" "${@:2}" --state "$dir/state"; }
alive() {
    kill -0 "$hydrad" 2>/dev/null && return
    tail -n 20 "$dir/hydrad.log" >&2
    die "hydrad has ended by itself"
}

# ---- the database. Line 5 of a running server's postmaster.pid is its socket directory, line 4 the port.
postmaster=$(find "$dir/state" -name postmaster.pid 2>/dev/null | head -n 1 || true)
[ -n "$postmaster" ] || { tail -n 20 "$dir/hydrad.log" >&2; die "there is no PostgreSQL under $dir/state"; }
sql=("${in_demo[@]}" PGHOST="$(sed -n 5p "$postmaster")" PGPORT="$(sed -n 4p "$postmaster")"
    psql -X -q -A -t -v ON_ERROR_STOP=1 -F $'\t' -d hydra)
for role in hydra "$owner" postgres ''; do
    [ -n "$role" ] || die "cannot log in to the database hydra: $("${sql[@]}" -U hydra -c '' 2>&1 || true)"
    if "${sql[@]}" -U "$role" -c 'select 1' >/dev/null 2>&1; then break; fi
done
sql+=(-U "$role")

# Evaluate demo:main, wait for its builds, and compare the newest evaluation's with a table.
evaluate_and_build() { # EXPECTED.tsv
    local expected=$1 total unfinished said='' since=$SECONDS
    ask jobset evaluate --wait --timeout 300 demo:main || die "demo:main was not evaluated; hydrad's log: $dir/hydrad.log"
    while :; do
        alive
        IFS=$'\t' read -r total unfinished < <("${sql[@]}" -c "select count(*), count(*) filter (where finished = 0) from Builds")
        [ "$((total - unfinished)) of $total" = "$said" ] || { said="$((total - unfinished)) of $total"; echo "   $said builds are finished"; }
        [ "$total" -eq 0 ] || [ "$unfinished" -gt 0 ] || break
        [ $((SECONDS - since)) -lt 300 ] || die "the builds do not end; hydrad's log: $dir/hydrad.log"
        sleep 0.5
    done
    "${sql[@]}" >"$dir/result.tsv" <<'END'
select b.job,
       case when b.finished = 1 then b.buildstatus::text else 'unfinished' end,
       coalesce((select s.machine from BuildSteps s
                  where s.build = b.id and s.drvpath = b.drvpath and s.machine <> '' order by s.stepnr desc limit 1), '-'),
       (select count(*) from BuildProducts p where p.build = b.id),
       coalesce(b.stoptime - b.starttime, 0),
       b.id,
       b.drvpath,
       coalesce(b.releasename, ''),
       (select count(*) from BuildMetrics m where m.build = b.id)
  from Builds b join JobsetEvalMembers m on m.build = b.id
 where m.eval = (select max(e.id) from JobsetEvals e join Jobsets j on j.id = e.jobset_id
                  where j.project = 'demo' and j.name = 'main' and e.hasNewBuilds = 1)
 order by b.id;
END
    local job status machine products words row is_status is_machine is_products seconds id drv remark base log
    printf '\n%-20s %6s  %-22s %-13s %5s %9s  %s\n' JOB BUILD STATUS MACHINE TIME PRODUCTS LOG
    while IFS=$'\t' read -r job status machine products words; do
        case $job in '#'*) continue ;; esac
        row=$(awk -F '\t' -v job="$job" '$1 == job' "$dir/result.tsv")
        IFS=$'\t' read -r _ is_status is_machine is_products seconds id drv _ <<<"${row:-$'-\tmissing\t-\t0\t0\t-\t-'}"
        remark=
        [ "$is_status" = "$status" ] || remark+=" status $is_status instead of $status;"
        [ "$machine" = - ] || [ "$is_machine" = "$machine" ] || remark+=" on $is_machine instead of $machine;"
        [ "$is_products" = "$products" ] || remark+=" $is_products products instead of $products;"
        base=${drv##*/}
        log=$(find "$dir/state" -path "*/${base:0:2}/${base:2}*" -type f 2>/dev/null | head -n 1 || true)
        [ "$is_status" = "$status" ] || words="STATUS $is_status"
        printf '%-20s %6s  %-22s %-13s %4ss %9s  %s\n' "$job" "$id" "$words" "$is_machine" "$seconds" "$is_products" "${log#"$dir"/}"
        if [ -n "$remark" ]; then
            echo "    WRONG:$remark"
            wrong=$((wrong + 1))
        fi
    done <"$expected"
    echo
    if [ "$(wc -l <"$dir/result.tsv")" -ne "$(grep -vc '^#' "$expected")" ]; then
        echo "WRONG: the evaluation has other jobs than $expected: $(cut -f1 "$dir/result.tsv" | xargs)"
        wrong=$((wrong + 1))
    fi
}
wrong=0 started=$SECONDS

step "a project whose jobsets are declared in its repository"
ask create-user demo --full-name "The demo" >/dev/null
ask apply --yes "$dir/demo.toml"
ask jobset evaluate --wait --timeout 300 demo:.jobsets >/dev/null || die "the project's declaration was not read; hydrad's log: $dir/hydrad.log"
ask jobset list demo

step "evaluating and building $(grep -vc '^#' tests/demo/expected.tsv) jobs on localhost and demo-builder"
evaluate_and_build tests/demo/expected.tsv
awk -F '\t' '$1 == "tarball" && $8 != "greet-1.0" { print "WRONG: the release name of tarball is \"" $8 "\""; bad = 1 }
    $1 == "tests" && $9 != 2 { print "WRONG: tests has " $9 " metrics instead of 2"; bad = 1 }
    END { exit bad }' "$dir/result.tsv" || wrong=$((wrong + 1))

step "a commit breaks one job and mends another"
"${git[@]}" apply - <tests/demo/update.patch
"${git[@]}" commit --quiet --all --message "Greet in the morning; a number is what it says"
"${git[@]}" --no-pager log --oneline --max-count=1
evaluate_and_build tests/demo/expected-after-update.tsv

step "what the commit did (hydrad eval diff demo:main)"
ask eval diff demo:main
listed() { # LIST: the jobs in a list of the difference
    ask eval diff --json demo:main | /usr/bin/python3 -c "import json, sys; print(*sorted(pair['job'] for pair in json.load(sys.stdin)['$1']))"
}
check() { # WHAT EXPECTED ACTUAL
    [ "$2" = "$3" ] && return
    echo "WRONG: $1: $3 instead of $2"
    wrong=$((wrong + 1))
}
check "newly broken" "release tests" "$(listed newlyBroken)"
check "newly fixed" "after-compile-error compile-error" "$(listed newlyFixed)"

step "what the webhook was told"
# As many ends as there are builds, and two evaluations; what a failed step ends together is told together.
builds=$("${sql[@]}" -c "select count(*) from Builds b join Jobsets j on j.id = b.jobset_id where j.name = 'main'")
summarise() {
    tail -n +2 "$dir/told.json" | /usr/bin/python3 -c '
import collections, json, sys
told, evaluations, ends = [json.loads(line) for line in sys.stdin], set(), {}
for document in told:
    if document["event"] == "evalAdded":
        evaluations.add(document["eval"])
    else:
        ends[document["build"]] = document["status"]
        for dependent in document["dependentIds"]:
            ends.setdefault(dependent, "dependency-failed")
counts = collections.Counter(ends.values()).most_common()
print(len(evaluations), len(ends), ", ".join(f"{count} {status}" for status, count in counts))'
}
since=$SECONDS
while :; do
    alive
    evaluations=0 ends=0
    read -r evaluations ends words < <(summarise 2>/dev/null) || true
    [ "$evaluations" -lt 2 ] || [ "$ends" -lt "$builds" ] || break
    [ $((SECONDS - since)) -lt 60 ] || { ask notifications; die "the webhook was told of $evaluations evaluations and $ends of $builds builds"; }
    sleep 0.5
done
echo "$evaluations evaluations, $ends builds: $words"

[ "$wrong" -eq 0 ] || die "$wrong not as expected (after $((SECONDS - started)) s); hydrad's log: $dir/hydrad.log"
verdict=good
echo "demo: all jobs ended as they should, twice, in $((SECONDS - started)) s."
[ -n "$keep" ] || echo "(run tests/demo/run.sh --keep to look at the logs, stores and database afterwards)"
