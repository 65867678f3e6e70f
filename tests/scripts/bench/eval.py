#!/usr/bin/python3
"""How fast jobs are evaluated: `hydrad eval-jobs` beside plain `nix-instantiate`, in turns, so that a busy neighbour slows all alike.
usage: eval.py [--label L] [--n 3000] [--work W] [--warm] [--workers 1,2] [--plain] [--repeat 5] [--quiet SECS]
Healthy jobs of tests/eval/failing.nix. Cold (the default): each run makes other derivations, which are all written to the store;
--warm: they are there already. --work: how much a job computes, see the expression. Each round runs nix-instantiate (with --plain)
and hydrad with each number of workers, once. The number of jobs that came out is checked. A line of results.jsonl for each kind has
the medians, and of the ratios those of the rounds.
"""
import argparse, json, os, resource, shutil, statistics, subprocess, sys, tempfile, time
import bench

JOBS = os.path.normpath(bench.HERE + "/../../eval")
HYDRAD = os.environ.get("BENCH_HYDRAD", os.path.normpath(bench.HERE + "/../../../target/release/hydrad"))

def one(a, workers, salt, dir):
    """One run; seconds and CPU seconds. workers 0: nix-instantiate."""
    args = ["--arg", "bad", "false", "--arg", "recurse", "true", "--arg", "n", str(a.n), "--arg", "work", str(a.work), "--argstr", "salt", salt]
    if workers: cmd = [HYDRAD, "eval-jobs", "-I", f"src={JOBS}", "<src/failing.nix>", "--workers", str(workers), "--gc-roots-dir", dir + "/roots"]
    else: cmd = ["nix-instantiate", JOBS + "/failing.nix"]
    env = dict(os.environ, HYDRA_CONFIG=dir + "/hydra.conf", HYDRA_DATA=dir, NIX_REMOTE="local")
    cpu, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(dir + "/out", "wb") as out: subprocess.run(cmd + args, env=env, stdout=out, stderr=subprocess.DEVNULL, check=True)
    secs, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if workers: jobs = sum("drvPath" in job for job in json.load(open(dir + "/out")).values())
    else: jobs = sum(1 for _ in open(dir + "/out"))
    if jobs != a.n: sys.exit(f"eval: {cmd[0]} found {jobs} jobs instead of {a.n}")
    return secs, after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime

a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
a.add_argument("--label", default="eval"); a.add_argument("--workers", default="1,2"); a.add_argument("--quiet", type=float, default=0)
for name, value in dict(n=3000, work=0, repeat=5).items(): a.add_argument("--" + name, type=int, default=value)
a.add_argument("--warm", action="store_true"); a.add_argument("--plain", action="store_true")
a = a.parse_args()
kinds = ([0] if a.plain else []) + [int(w) for w in a.workers.split(",")]
dir = tempfile.mkdtemp(prefix="eval-", dir=bench.BENCH_DIR); open(dir + "/hydra.conf", "w").close()
rounds = []
try:
    if a.warm: one(a, kinds[-1], "warm", dir)
    for i in range(a.repeat):
        bench.quiet(a.quiet)
        # Who is first in a round takes turns as well.
        order = kinds[i % len(kinds):] + kinds[:i % len(kinds)]
        rounds.append({k: one(a, k, "warm" if a.warm else f"cold-{time.time_ns()}", dir) for k in order})
finally: shutil.rmtree(dir, ignore_errors=True)
res = dict(test="eval", label=a.label, n=a.n, work=a.work, warm=a.warm, repeat=a.repeat)
for k in kinds:
    name = f"workers_{k}" if k else "plain"
    res[name] = dict(secs=round(statistics.median(r[k][0] for r in rounds), 3), cpu=round(statistics.median(r[k][1] for r in rounds), 3),
                     jobs_per_s=round(a.n / statistics.median(r[k][0] for r in rounds)))
ratio = lambda x, y: round(statistics.median(r[x][0] / r[y][0] for r in rounds), 3)
if a.plain: res["one_of_plain"] = ratio(0, 1)
if 1 in kinds and 2 in kinds: res["two_of_one"] = ratio(1, 2)
print(json.dumps(res), flush=True)
with open(bench.BENCH_DIR + "/results.jsonl", "a") as f: f.write(json.dumps(res) + "\n")
