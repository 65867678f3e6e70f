#!/usr/bin/env bash
# Benchmark: how fast hydrad loads a queue, starts a build, gets through a graph, tells of events, evaluates jobs. Private PostgreSQL and Nix store in BENCH_DIR
# (default /var/tmp/hydrad-bench-USER, kept for the next run; results.jsonl in it has one line per run).
#   bench.sh              the usual set, and at its end a table of what was measured beside the goals (goals.json: the same);
#                         12 minutes on two quiet processors, 3 of them the first time only. Exit code 1: a goal is not met.
#   bench.sh ARGS...      one run of bench/bench.py, e.g. `bench.sh e2e --graph l2k --machines fake:4x8 --repeat 3`
#   bench.sh notify ARGS  one run of bench/notify.py, the notifier's, e.g. `bench.sh notify --events 10000 --threads 2`
# BENCH_RUNNER names another queue runner to measure.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD here=$PWD/tests/scripts/bench
export BENCH_DIR=${BENCH_DIR:-/var/tmp/hydrad-bench-$(id -un)}
step() { echo "== bench: $*"; }

tests/scripts/deps.sh
mkdir -p "$BENCH_DIR"
chmod 755 "$BENCH_DIR"
# Folders in it far from each other on the disk, where the file system can: see Runner in bench.py.
chattr +T "$BENCH_DIR" 2>/dev/null || true
mkdir -p "$BENCH_DIR"/{bin,nix/{store,var,conf}}
ln -sfn "$top/target/release/hydrad" "$BENCH_DIR/bin/hydra-queue-runner"
export BENCH_RUNNER=${BENCH_RUNNER:-$BENCH_DIR/bin/hydra-queue-runner}
[ -x "$BENCH_RUNNER" ] || { echo "bench: $BENCH_RUNNER does not exist: run \`make release\`" >&2; exit 1; }
export NIX_STORE_DIR=$BENCH_DIR/nix/store NIX_STATE_DIR=$BENCH_DIR/nix/var NIX_LOG_DIR=$BENCH_DIR/nix/var/log
export NIX_CONF_DIR=$BENCH_DIR/nix/conf
printf 'substituters =\nsandbox = false\nbuild-users-group =\nexperimental-features = nix-command\n' >"$NIX_CONF_DIR/nix.conf"
bench() { /usr/bin/python3 "$here/bench.py" "$@"; }
notify() { /usr/bin/python3 "$here/notify.py" --program "$top/target/release/hydrad" "$@"; }

"$here/pg.sh" init-once "$BENCH_DIR/pg"
"$here/pg.sh" start "$BENCH_DIR/pg"
trap '"$here/pg.sh" stop "$BENCH_DIR/pg"; rm -rf "$BENCH_DIR"/runs/*/data "$BENCH_DIR"/runs/*/roots' EXIT
rm -rf "$BENCH_DIR/runs"
# The database is made anew when the schema has changed since.
cat sql/schema/hydra-87.sql sql/schema/hydrad.sql sql/schema/hydrad-*.sql >"$BENCH_DIR/schema.new"
if ! cmp -s "$BENCH_DIR/schema.new" "$BENCH_DIR/schema.sql"; then
    step "making the database"
    rm -f "$BENCH_DIR/schema.sql"
    bench pg-init --sql "$BENCH_DIR/schema.new"
    mv "$BENCH_DIR/schema.new" "$BENCH_DIR/schema.sql"
fi
if [ "${1:-}" = notify ]; then
    shift
    notify "$@"
    exit
fi
graph() {
    local name=$1
    shift
    [ -f "$BENCH_DIR/graphs/$name.json" ] || bench gen "$name" "$@"
}
graph flat --layers 1 --width 2000
graph l2k --layers 20 --width 100
graph l10k --layers 20 --width 500
graph sleepers --layers 1 --width 8 --cmd "$(command -v sleep) 3600"

if [ $# -gt 0 ]; then
    bench "$@"
    exit
fi
graph l100k --layers 20 --width 5000
touch "$BENCH_DIR/results.jsonl"
first=$(wc -l <"$BENCH_DIR/results.jsonl")
calm=(--quiet 5)
loaded=(--probe "log:queue loaded") ready=(--probe log:ready)
floor() { /usr/bin/python3 "$here/serve_floor.py" --graph flat --mode persistent --query --infos "${calm[@]}" "$@"; }
step "loading a queue of 10,000 builds, then one of 100,000; no slot"
bench load --label load-10k --graph l10k "${loaded[@]}" "${calm[@]}" --repeat 3
bench load --label load-100k --graph l100k "${loaded[@]}" "${calm[@]}"
step "10,000 builds arrive while slots are idle, then while 8 slots are busy with builds that take long"
for _ in 1 2 3; do
    bench arrive --label arrive-idle --graph l10k --machines none "${ready[@]}" "${calm[@]}"
    bench arrive --label arrive-busy --graph l10k --machines localhost:8 --sleepers sleepers --conf stop_timeout=1 "${ready[@]}" "${calm[@]}"
done
step "the same queue read at start, with 8 slots that build trivial derivations meanwhile"
bench restart --label restart --graph l10k --machines localhost:8 "${loaded[@]}" "${calm[@]}"
step "one build on an idle queue runner: NOTIFY until it is started, until it is finished; then Nix alone"
bench latency --label latency --graph flat --machines localhost:1 --count 100 "${ready[@]}" "${calm[@]}"
floor --label nix-alone --conns 1 --limit 100 --gap 0.2
step "2,000 builds, eight slots on this machine; before and after it, what four kept connections can do at most"
for _ in 1 2 3; do floor --conns 4; done
bench e2e --label throughput --graph flat --machines localhost:8 "${ready[@]}" "${calm[@]}" --repeat 3
for _ in 1 2 3; do floor --conns 4; done
step "2,000 builds in 20 layers, eight slots on this machine"
bench e2e --label layers --graph l2k --machines localhost:8 "${ready[@]}" "${calm[@]}"
step "96 slots on twelve machines over a stub of ssh: database connections, with the usual pool and with one of 4"
bench conns --label slots-96 --graph l2k --machines fake:12x8 "${ready[@]}" "${calm[@]}"
bench conns --label slots-96-pool-4 --graph l2k --machines fake:12x8 "${ready[@]}" --conf max_db_connections=4 "${calm[@]}"
step "100,000 events, four threads tell a web server of them while another one hangs; then 5,000 more at 200 a second"
notify "${calm[@]}"
evaluate() { /usr/bin/python3 "$here/eval.py" "${calm[@]}" "$@"; }
step "evaluating 3,000 jobs whose derivations are not there yet, with one process and with two; nix-instantiate beside them"
evaluate --label eval-cold --plain
step "evaluating 3,000 jobs that compute a while and whose derivations are there, with one process and with two"
evaluate --label eval-warm --work 4000 --warm
/usr/bin/python3 "$here/goals.py" "$BENCH_DIR/results.jsonl" "$first" "$BENCH_DIR/goals.json"
