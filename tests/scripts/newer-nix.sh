#!/usr/bin/env bash
# Does a builder with a newer Nix work? Runs hydrad with this host's Nix and one "ssh" builder that is Debian 13's Nix in a
# chroot with a store of its own: inputs are sent, outputs received, a log and a failure come back.
# Needs root and the base system that nspawn.sh makes. Not part of `make test`.   usage: newer-nix.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
base=${1:-/var/tmp/hydrad-nspawn}/base
die() { echo "newer-nix: $*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || die "needs root"
[ -e "$base/.complete" ] || [ -x "$base/usr/bin/nix-store" ] || die "$base does not exist: run tests/scripts/nspawn.sh once"
[ -x target/release/hydrad ] || die "target/release/hydrad does not exist: run \`make release\`"
here=$PWD

dir=$(mktemp -d /tmp/hydrad-newer-nix.XXXXXX)
chmod 755 "$dir"
pid=
finish() {
    if [ -n "$pid" ]; then kill -TERM "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
    rm -rf "$dir"
}
trap finish EXIT
for side in "$dir" "$dir/builder"; do
    mkdir -p "$side"/{store,var,conf,bin}
    printf 'build-users-group =\nsubstituters =\nsandbox = false\nexperimental-features = nix-command\n' >"$side/conf/nix.conf"
done
# Inside the chroot the builder's folders lie where this host's lie outside: the same store paths in another store.
cat >"$dir/bin/ssh" <<END
#!/bin/sh
exec unshare -m /bin/sh -c '
    mount -t proc proc $base/proc && mount --rbind /dev $base/dev
    mkdir -p $base$dir && mount --bind $dir/builder $base$dir
    exec chroot $base /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$dir/var \
        NIX_LOG_DIR=$dir/var/log NIX_CONF_DIR=$dir/conf NIX_REMOTE=local nix-store --serve --write'
END
chmod 755 "$dir/bin/ssh"
echo "== here: $(nix-store --version); there: $(PATH=$dir/bin:$PATH unshare -m /bin/sh -c "mount -t proc proc $base/proc && exec chroot $base nix-store --version")"
export PATH=$dir/bin:$PATH LOGNAME=root NIX_STORE_DIR=$dir/store NIX_STATE_DIR=$dir/var NIX_LOG_DIR=$dir/var/log
export NIX_CONF_DIR=$dir/conf NIX_REMOTE=local NIX_REMOTE_SYSTEMS=$dir/machines
printf 'newer %s - 2 1\n' "$(uname -m)-linux" >"$dir/machines"
cat >"$dir/jobs.nix" <<'END'
let
  job = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin"; };
  lib = job "lib" "echo building lib; mkdir $out; echo data > $out/file";
in {
  inherit lib;
  app = job "app" "echo using ${lib}; cat ${lib}/file; cp ${lib}/file $out; echo ${lib} >> $out";
  source = job "source" "cat ${builtins.toFile "text" "a source"} > $out";
  bad = job "bad" "echo this goes wrong; exit 7";
}
END
"$dir/bin/ssh" </dev/null >/dev/null 2>&1 || true
target/release/hydrad run --state "$dir/state" >"$dir/hydrad.log" 2>&1 </dev/null &
pid=$!
for _ in $(seq 100); do target/release/hydrad status --state "$dir/state" >/dev/null 2>&1 && break; sleep 0.2; done
timeout 120 "$here/target/release/hydrad" enqueue --state "$dir/state" --wait --json "$dir/jobs.nix" >"$dir/result.json" || true
for want in '"job":"app"[^}]*"status":0' '"job":"lib"[^}]*"status":0' '"job":"source"[^}]*"status":0' '"job":"bad"[^}]*"status":1'; do
    grep -Eq "$want" "$dir/result.json" || { cat "$dir/result.json"; tail -n 30 "$dir/hydrad.log"; die "not found: $want"; }
done
bad=$(nix-instantiate "$dir/jobs.nix" -A bad 2>/dev/null)
target/release/hydrad log --state "$dir/state" "$bad" | grep -q "this goes wrong" || die "the log of the failure is not there"
grep -q data "$(nix-store -q "$(nix-instantiate "$dir/jobs.nix" -A app 2>/dev/null)")" || die "the output did not come back"
echo "newer-nix: inputs sent, outputs received, a failure and its log came back"
