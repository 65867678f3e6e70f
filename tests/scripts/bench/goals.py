#!/usr/bin/python3
"""The benchmark's results beside its goals: one table for people, one JSON object for scripts.
usage: goals.py RESULTS FIRST_LINE JSON_OUT
Reads the runs that bench.sh has appended to RESULTS from line FIRST_LINE on, told apart by their labels. A figure is the median
of its runs. Exit code 0: all goals are met; 1: some are not; 2: a run is missing.
"""
import json, statistics, sys

results, first, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
runs = [json.loads(line) for line in list(open(results))[first:]]

def of(label):
    found = [r for r in runs if r.get("label", r["test"]) == label]
    if not found:
        print(f"goals: there is no run '{label}' in {results} from line {first} on", file=sys.stderr); sys.exit(2)
    return found
def median(label, figure): return statistics.median(figure(r) for r in of(label))
def field(name): return lambda r: r[name]

floor = median("serve_floor", field("steps_per_s"))
rate = median("throughput", field("steps_per_s"))
idle, busy = median("arrive-idle", field("secs")), median("arrive-busy", field("secs"))
for r in of("arrive-busy"):
    if r["busy"] != 8 or r["ended"]: print(f"goals: the slots were not busy all the time: {r}", file=sys.stderr); sys.exit(2)
large = of("load-100k")
kb = lambda rs: statistics.median(r["hwm_mb"] for r in rs) * 1024
cold, warm = of("eval-cold")[-1], of("eval-warm")[-1]
wide, narrow = of("slots-96"), of("slots-96-pool-4")
for r in wide + narrow:
    if not r["max_conns"]: print(f"goals: the connections were not seen: {r}", file=sys.stderr); sys.exit(2)

told = of("notify")
for r in told:
    if r["doubles"] or not r["hanging"]: print(f"goals: not a run without doubles and with a hanging server: {r}", file=sys.stderr); sys.exit(2)

# (what, measured, unit, "<=" or ">=", goal, remark)
rows = [
    ("throughput, 2,000 trivial builds, 8 slots", rate / floor, "of the limit", ">=", 0.5,
     f"{rate:.0f} builds/s; the protocol's limit with 4 connections is {floor:.0f}/s"),
    ("transactions a step", median("throughput", field("xacts_per_step")), "", "<=", 3, ""),
    ("own CPU a step", median("throughput", lambda r: r["cpu_self"] / r["n"] * 1000), "ms", "<=", 1, "children and PostgreSQL apart"),
    ("loading 10,000 queued builds", median("load-10k", field("secs")), "s", "<=", 0.5, "from the start of the process"),
    ("loading 100,000 queued builds", median("load-100k", field("secs")), "s", "<=", 5, "from the start of the process"),
    ("memory of a queued build", kb(large) / large[0]["n"], "KB", "<=", 1, "peak of the whole process with 100,000"),
    ("10,000 builds arrive while 8 slots are busy", busy / idle, "of idle", "<=", 1.1, f"{busy:.3f} s; with idle slots {idle:.3f} s"),
    ("NOTIFY to step_started, 99 of 100", median("latency", field("started_p99_ms")), "ms", "<=", 5, ""),
    ("NOTIFY to build_finished, median", median("latency", field("finished_med_ms")), "ms", "<=", 10,
     f"Nix alone, one kept connection: {median('nix-alone', field('med_ms')):.1f} ms"),
    ("database connections at 96 slots", max(r["max_conns"] for r in wide), "", "<=", 8, f"{max(r['max_busy_steps'] for r in wide)} steps at once"),
    ("100,000 events told, another server hangs", median("notify", field("events_per_s")), "/s", ">=", 500,
     f"{told[0]['threads']} threads; half of them within {median('notify', field('burst_p50_ms')) / 1000:.0f} s, 99 of 100 within {median('notify', field('burst_p99_ms')) / 1000:.0f} s"),
    ("NOTIFY to the server, 200 a second, median", median("notify", field("paced_p50_ms")), "ms", "<=", 20, ""),
    ("NOTIFY to the server, 99 of 100", median("notify", field("paced_p99_ms")), "ms", "<=", 100, ""),
    ("notifier's memory after 100,000 events", statistics.median(r["rss_mb"] / r["rss_10k_mb"] for r in told), "of that at 10,000", "<=", 2,
     f"{median('notify', field('rss_mb')):.0f} MB"),
    ("steps at once at 96 slots, pool of 4", max(r["max_busy_steps"] for r in narrow), "", ">=", 96, f"{max(r['max_conns'] for r in narrow)} connections"),
    ("evaluating trivial jobs, cold, one process", cold["one_of_plain"], "of plain Nix", ">=", 0.8,
     f"{cold['workers_1']['jobs_per_s']} jobs/s; nix-instantiate {cold['plain']['jobs_per_s']}"),
    ("the same with two processes", cold["two_of_one"], "of one", ">=", 0.75, f"{cold['workers_2']['jobs_per_s']} jobs/s"),
    ("evaluating jobs that compute, two processes", warm["two_of_one"], "of one", ">=", 1.3,
     f"{warm['workers_1']['secs'] / warm['n'] * 1000:.2f} ms a job with one process; derivations exist"),
]
met = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
fields = ("what", "measured", "unit", "relation", "goal", "remark")
table = [dict(zip(fields, row), ok=met[row[3]](row[1], row[4])) for row in rows]
foreign = statistics.median(r["cpu_foreign"] / r["secs"] for r in of("throughput"))
print(f"\n{'':43}  {'measured':>9}  {'goal':<10}        ")
for row in table:
    goal = f"{row['relation']} {row['goal']:g}"
    print(f"{row['what']:43}  {row['measured']:9.3g}  {goal:8} {row['unit']:12}  {'ok ' if row['ok'] else 'NOT'}  {row['remark']}")
with open(out, "w") as f: json.dump(dict(goals=table, all_met=all(r["ok"] for r in table), runs=len(runs)), f, indent=1)
print(f"Other programs used {foreign:.2f} of this machine's processors during the throughput runs. As JSON: {out}")
sys.exit(0 if all(row["ok"] for row in table) else 1)
