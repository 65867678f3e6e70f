#!/usr/bin/env bash
# Benchmark: how fast hydrad loads a queue, starts a build, gets through a graph. Private PostgreSQL and Nix store in BENCH_DIR
# (default /var/tmp/hydrad-bench-USER, kept for the next run; results.jsonl in it has one line per run).
#   bench.sh              the usual set
#   bench.sh ARGS...      one run of bench/bench.py, e.g. `bench.sh e2e --graph deep --machines fake:4x8 --repeat 3`
# BENCH_RUNNER names another queue runner to measure.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD here=$PWD/tests/scripts/bench
export BENCH_DIR=${BENCH_DIR:-/var/tmp/hydrad-bench-$(id -un)}
step() { echo "== bench: $*"; }

tests/scripts/deps.sh
mkdir -p "$BENCH_DIR"/{bin,nix/{store,var,conf}}
chmod 755 "$BENCH_DIR"
ln -sfn "$top/target/release/hydrad" "$BENCH_DIR/bin/hydra-queue-runner"
export BENCH_RUNNER=${BENCH_RUNNER:-$BENCH_DIR/bin/hydra-queue-runner}
[ -x "$BENCH_RUNNER" ] || { echo "bench: $BENCH_RUNNER does not exist: run \`make release\`" >&2; exit 1; }
export NIX_STORE_DIR=$BENCH_DIR/nix/store NIX_STATE_DIR=$BENCH_DIR/nix/var NIX_LOG_DIR=$BENCH_DIR/nix/var/log
export NIX_CONF_DIR=$BENCH_DIR/nix/conf
printf 'substituters =\nsandbox = false\nbuild-users-group =\nexperimental-features = nix-command\n' >"$NIX_CONF_DIR/nix.conf"
bench() { /usr/bin/python3 "$here/bench.py" "$@"; }

fresh=
[ -d "$BENCH_DIR/pg/data" ] || { step "making a PostgreSQL cluster in $BENCH_DIR/pg"; "$here/pg.sh" init "$BENCH_DIR/pg"; fresh=1; }
"$here/pg.sh" start "$BENCH_DIR/pg"
trap '"$here/pg.sh" stop "$BENCH_DIR/pg"' EXIT
if [ -n "$fresh" ]; then
    cat sql/schema/hydra-87.sql sql/schema/hydrad.sql >"$BENCH_DIR/schema.sql"
    bench pg-init --sql "$BENCH_DIR/schema.sql"
fi
[ -f "$BENCH_DIR/graphs/flat.json" ] || bench gen flat --layers 1 --width 1000
[ -f "$BENCH_DIR/graphs/deep.json" ] || bench gen deep --layers 20 --width 50

if [ $# -gt 0 ]; then
    bench "$@"
    exit
fi
step "loading a queue of 1000 builds"
bench load --graph deep --repeat 3
step "one build on an idle queue runner: until it is started, until it is finished"
bench latency --graph flat --machines localhost:1 --count 50
step "1000 builds, two slots on this machine"
bench e2e --graph deep --machines localhost:2
step "1000 builds, four machines with eight slots over a stub of ssh"
bench e2e --graph deep --machines fake:4x8
step "restart with 1000 builds queued"
bench restart --graph deep --machines localhost:1
