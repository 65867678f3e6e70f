#!/usr/bin/env bash
# The demo: build tests/demo/project.nix with hydrad on two machines, and compare what the database says afterwards with
# tests/demo/expected.tsv. Everything lives in a directory under /tmp: an embedded PostgreSQL, a Nix store, an sshd on the
# loopback interface that plays a build machine with a store of its own. Nothing of this machine's is touched.
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
        echo "kept: $dir (hydrad.log, state/, store/, builder/, project/, ssh/)"
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
# No ports: another hydrad may be running here.
printf 'queue_runner_metrics_address = none\nstatus_address = none\n' >"$dir/hydra.conf"

if [ "$owner" != "$me" ]; then
    chown -R "$owner" "$dir"
    chown -R "$me" "$dir/builder"
fi
# A prefix for commands, not a function: so the pid of a command in the background is its own.
in_demo=("${as_owner[@]}" env -i PATH="$PATH" HOME="$dir/home" USER="$owner" LOGNAME="$owner" LC_ALL=C.UTF-8
    RUST_LOG="${RUST_LOG:-info}" RUST_BACKTRACE=1
    NIX_STORE_DIR="$dir/store" NIX_STATE_DIR="$dir/var" NIX_LOG_DIR="$dir/var/log/nix" NIX_CONF_DIR="$dir/conf"
    NIX_REMOTE=local NIX_REMOTE_SYSTEMS="$dir/machines" NIX_SSHOPTS="-F $dir/ssh/config" HYDRA_CONFIG="$dir/hydra.conf")
"${in_demo[@]}" ssh -F "$dir/ssh/config" demo-builder nix-store --version >/dev/null || die "cannot log in to the build machine (see $dir/builder/sshd.log)"

step "starting hydrad with a database of its own"
"${in_demo[@]}" "$dir/hydrad" run --state "$dir/state" >"$dir/hydrad.log" 2>&1 </dev/null &
pids+=($!)
hydrad=$!
for _ in $(seq 120); do
    if "${in_demo[@]}" "$dir/hydrad" status --state "$dir/state" >/dev/null 2>&1; then break; fi
    kill -0 "$hydrad" 2>/dev/null || { tail -n 20 "$dir/hydrad.log" >&2; die "hydrad does not start"; }
    sleep 0.5
done

step "building $(grep -vc '^#' tests/demo/expected.tsv) jobs on localhost and demo-builder"
started=$SECONDS
# The jobs that must fail may well show in its exit code; the database decides below.
"${in_demo[@]}" timeout 300 "$dir/hydrad" enqueue --state "$dir/state" --project demo --jobset main --wait "$dir/project/project.nix" || true
if ! kill -0 "$hydrad" 2>/dev/null; then
    tail -n 20 "$dir/hydrad.log" >&2
    die "hydrad has ended by itself"
fi

# ---- what the database says. Line 5 of a running server's postmaster.pid is its socket directory, line 4 the port.
postmaster=$(find "$dir/state" -name postmaster.pid 2>/dev/null | head -n 1 || true)
[ -n "$postmaster" ] || { tail -n 20 "$dir/hydrad.log" >&2; die "there is no PostgreSQL under $dir/state"; }
sql=("${in_demo[@]}" PGHOST="$(sed -n 5p "$postmaster")" PGPORT="$(sed -n 4p "$postmaster")"
    psql -X -q -A -t -v ON_ERROR_STOP=1 -F $'\t' -d hydra)
for role in hydra "$owner" postgres ''; do
    [ -n "$role" ] || die "cannot log in to the database hydra: $("${sql[@]}" -U hydra -c '' 2>&1 || true)"
    if "${sql[@]}" -U "$role" -c 'select 1' >/dev/null 2>&1; then break; fi
done
"${sql[@]}" -U "$role" >"$dir/result.tsv" <<'END'
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
  from Builds b order by b.id;
END

wrong=0
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
done <tests/demo/expected.tsv
echo
awk -F '\t' '$1 == "tarball" && $8 != "greet-1.0" { print "WRONG: the release name of tarball is \"" $8 "\""; bad = 1 }
    $1 == "tests" && $9 != 2 { print "WRONG: tests has " $9 " metrics instead of 2"; bad = 1 }
    END { exit bad }' "$dir/result.tsv" || wrong=$((wrong + 1))

[ "$wrong" -eq 0 ] || die "$wrong not as expected (after $((SECONDS - started)) s); hydrad's log: $dir/hydrad.log"
verdict=good
echo "demo: all jobs ended as they should, in $((SECONDS - started)) s."
[ -n "$keep" ] || echo "(run tests/demo/run.sh --keep to look at the logs, stores and database afterwards)"
