#!/usr/bin/env bash
# Benchmark: how fast hydrad loads a queue, starts a build, gets through a graph. Private PostgreSQL and Nix store in BENCH_DIR
# (default /var/tmp/hydrad-bench-USER, kept for the next run; results.jsonl in it has one line per run).
#   bench.sh              the usual set (BENCH_LARGE=1: also a queue of 100,000, whose making takes minutes)
#   bench.sh ARGS...      one run of bench/bench.py, e.g. `bench.sh e2e --graph l2k --machines fake:4x8 --repeat 3`
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
    cat sql/schema/hydra-87.sql sql/schema/hydrad.sql sql/schema/hydrad-*.sql >"$BENCH_DIR/schema.sql"
    bench pg-init --sql "$BENCH_DIR/schema.sql"
fi
for graph in "flat 1 2000" "l2k 20 100" "l10k 20 500" ${BENCH_LARGE:+"l100k 20 5000"}; do
    read -r name layers width <<<"$graph"
    [ -f "$BENCH_DIR/graphs/$name.json" ] || bench gen "$name" --layers "$layers" --width "$width"
done

if [ $# -gt 0 ]; then
    bench "$@"
    exit
fi
floor() { /usr/bin/python3 "$here/serve_floor.py" --graph flat --mode persistent --conns 4 --query --infos --quiet 20; }
loaded=(--probe "log:queue loaded") ready=(--probe log:ready)
step "loading a queue of 10,000 builds (no slot), then with 8 slots busy"
bench load --graph l10k "${loaded[@]}" --quiet 20 --repeat 3
bench restart --graph l10k --machines localhost:8 "${loaded[@]}" --limit 10000
if [ -n "${BENCH_LARGE:-}" ]; then
    step "loading a queue of 100,000 builds"
    bench load --graph l100k "${loaded[@]}" --quiet 20
fi
step "one build on an idle queue runner: NOTIFY until it is started, until it is finished"
bench latency --graph flat --machines localhost:1 --count 50 "${ready[@]}" --quiet 20
step "2,000 builds, eight slots on this machine; before and after it, what four kept connections can do at most"
floor; floor; floor
bench e2e --graph flat --machines localhost:8 "${ready[@]}" --quiet 20 --repeat 3
floor; floor; floor
step "2,000 builds in 20 layers, eight slots on this machine"
bench e2e --graph l2k --machines localhost:8 "${ready[@]}" --quiet 20
step "96 slots on twelve machines over a stub of ssh: database connections, with the usual pool and with one of 4"
bench conns --graph l2k --machines fake:12x8 "${ready[@]}" --quiet 20
bench conns --graph l2k --machines fake:12x8 "${ready[@]}" --conf max_db_connections=4 --quiet 20
