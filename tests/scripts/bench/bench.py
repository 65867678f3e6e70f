#!/usr/bin/python3
"""Benchmark harness for Hydra-compatible queue runners (any implementation).

Setup:   bench.py pg-init --sql /path/to/hydra.sql      create database `hydra` (drops an old one) + project/jobset
Graphs:  bench.py gen NAME --layers 20 --width 50 [--inputs 5 --window 10 --pad 1500 --cmd 'echo > $out' --system S --salt S]
             writes the .drv files to the Nix store and $BENCH_DIR/graphs/NAME.json ([{n,d,o,l}...])
Measure: bench.py load    --graph NAME [runner options]   time until all builds are loaded; no slot available
         bench.py e2e     --graph NAME [runner options]   NOTIFY builds_added on an idle runner -> all builds finished
         bench.py latency --graph NAME --count 50 ...     one build at a time on an idle runner: NOTIFY -> started/finished
         bench.py conns   --graph NAME ...                like e2e; samples DB connections and concurrently busy steps
         bench.py restart --graph NAME ...                queue already in the DB: start -> first step_started / all loaded
         bench.py arrive  --graph NAME [--sleepers G] ... builds of G keep the slots busy; then NAME is queued: NOTIFY -> all loaded
         bench.py nixbuild --graph NAME --jobs 8          plain `nix-store -r -jN` of the same derivations
Runner options:
  --runner PATH           program to measure (default $BENCH_RUNNER)      --runner-arg ARG   (repeatable)
  --label TEXT            stored with each result                         --repeat K
  --machines SPEC         e.g. localhost:8 | fake:4x8 (4 ssh machines x 8 slots via fake-ssh/ssh) | none (0 slots) |
                          mismatch (a machine of another system type; add --conf max_unsupported_time=100000)
  --conf KEY=VALUE        extra hydra.conf line (repeatable)
  --store direct|daemon   daemon = set NIX_REMOTE=daemon (a nix-daemon must be running)
  --probe prom|status|log:REGEX   how "all loaded" is detected: Prometheus counter
                          hydraqueuerunner_queue_checks_finished_total, SystemStatus JSON (nrQueuedBuilds), or a log line
  --env K=V               extra environment (repeatable)
  --quiet SECS            before each run wait up to SECS for an otherwise idle machine; the result's cpu_foreign tells how much
                          CPU time other programs used during the run (discard runs where it is large)
Results: one JSON line per run appended to $BENCH_DIR/results.jsonl and printed; medians are printed after repeats.
Environment: BENCH_DIR (default ./bench-state), BENCH_DB (libpq DSN; default: the cluster `pg.sh` keeps in BENCH_DIR/pg), NIX_CONF_DIR.
Outputs of the graph are deleted from the store, and Builds/BuildSteps/... truncated, before every run.
The Nix store is the one of the environment; bench.sh makes one of its own. Use a configuration without substituters and
(as root) with an empty build-users-group.
"""
import argparse, getpass, json, os, re, select, signal, statistics, subprocess, sys, tempfile, threading, time, urllib.request
import psycopg2, psycopg2.extras, psycopg2.extensions

HERE = os.path.dirname(os.path.abspath(__file__))
BENCH_DIR = os.path.abspath(os.environ.get("BENCH_DIR", "bench-state"))
DSN = os.environ.get("BENCH_DB", f"dbname=hydra host={BENCH_DIR}/pg port=15432 user=postgres")
PROM_PORT = int(os.environ.get("BENCH_PROM_PORT", "19198"))
if "NIX_CONF_DIR" not in os.environ:
    os.environ["NIX_CONF_DIR"] = BENCH_DIR + "/nixconf"; os.makedirs(os.environ["NIX_CONF_DIR"], exist_ok=True)
    with open(os.environ["NIX_CONF_DIR"] + "/nix.conf", "w") as f: f.write("substituters =\nsandbox = false\nbuild-users-group =\nexperimental-features = nix-command\n")
HZ = os.sysconf("SC_CLK_TCK")

def connect(autocommit=True, dsn=DSN):
    c = psycopg2.connect(dsn + " application_name=bench"); c.autocommit = autocommit; return c

# ---------------------------------------------------------------- graphs
def gen(a):
    os.makedirs(BENCH_DIR + "/graphs", exist_ok=True)
    cmd = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", HERE + "/dag.nix",
           "--argstr", "salt", a.salt or a.name, "--argstr", "cmd", a.cmd, "--argstr", "system", a.system]
    for k in ("layers", "width", "inputs", "window", "srcs", "pad"):
        cmd += ["--arg", k, str(getattr(a, k))]
    t = time.time()
    out = subprocess.run(cmd, check=True, stdout=subprocess.PIPE).stdout
    g = json.loads(out)
    json.dump(g, open(f"{BENCH_DIR}/graphs/{a.name}.json", "w"))
    # closure statistics from the graph shape (derivations only), sampled on the last layer
    print(f"{a.name}: {len(g)} derivations in {time.time()-t:.1f}s, drv bytes (last) {os.path.getsize(g[-1]['d'])}")
    r = subprocess.run(["nix-store", "-qR", g[-1]["d"]], stdout=subprocess.PIPE, text=True).stdout.split()
    print(f"  closure of the last derivation: {sum(p.endswith('.drv') for p in r)} drvs, {len(r)} paths")

def load_graph(name, limit=None):
    g = json.load(open(f"{BENCH_DIR}/graphs/{name}.json"))
    return g[:limit] if limit else g

def delete_outputs(g):
    """Make all outputs of the graph invalid again (reverse topological order is handled by nix-store)."""
    outs = [x["o"] for x in g if os.path.lexists(x["o"])]
    for i in range(0, len(outs), 12000):
        subprocess.run(["nix-store", "--delete", "--ignore-liveness"] + outs[i:i+12000], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

# ---------------------------------------------------------------- database
def pg_init(a):
    base = re.sub(r"dbname=\S+", "dbname=postgres", DSN); name = re.search(r"dbname=(\S+)", DSN).group(1)
    c = connect(dsn=base); cur = c.cursor()
    cur.execute(f"drop database if exists {name}"); cur.execute(f"create database {name}")
    subprocess.run(["psql", "-q", "-d", DSN, "-v", "ON_ERROR_STOP=0", "-f", a.sql], stdout=subprocess.DEVNULL)
    c = connect(); cur = c.cursor()
    cur.execute("insert into users(username,emailaddress,password) values('bench','b@localhost','!')")
    cur.execute("insert into projects(name,displayname,owner) values('bench','bench','bench')")
    cur.execute("insert into jobsets(project,name,nixexprinput,nixexprpath,emailoverride,enabled) values('bench','js','x','y','',1)")

def reset_db(cur):
    cur.execute("truncate builds, jobsetevals, failedpaths, systemstatus restart identity cascade")
    cur.execute("update nrbuilds set count = 0")

def insert_builds(conn, g):
    """Insert Builds, BuildOutputs, one JobsetEval and its members for every graph node in one transaction."""
    cur = conn.cursor(); now = int(time.time())
    cur.execute("select id from jobsets where project='bench' and name='js'"); js = cur.fetchone()[0]
    rows = [(0, now, js, x["n"], x["n"], x["d"], "x86_64-linux", 7200, 36000, 1, 100) for x in g]
    ids = psycopg2.extras.execute_values(cur,
        "insert into builds(finished,timestamp,jobset_id,job,nixname,drvpath,system,maxsilent,timeout,iscurrent,priority)"
        " values %s returning id", rows, page_size=5000, fetch=True)
    ids = [i[0] for i in ids]
    psycopg2.extras.execute_values(cur, "insert into buildoutputs(build,name,path) values %s",
        [(i, "out", x["o"]) for i, x in zip(ids, g)], page_size=5000)
    cur.execute("insert into jobsetevals(jobset_id,timestamp,checkouttime,evaltime,hasnewbuilds,hash,nrbuilds) "
                "values(%s,%s,0,0,1,'bench',%s) returning id", (js, now, len(ids)))
    ev = cur.fetchone()[0]
    psycopg2.extras.execute_values(cur, "insert into jobsetevalmembers(eval,build,isnew) values %s",
        [(ev, i, 1) for i in ids], page_size=5000)
    return ids

# ---------------------------------------------------------------- process accounting
def pstat(pid):
    try:
        f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return dict(ppid=int(f[1]), u=int(f[11])/HZ, s=int(f[12])/HZ, cu=int(f[13])/HZ, cs=int(f[14])/HZ, thr=int(f[17]))

def postmaster():
    for d in os.listdir("/proc"):
        if d.isdigit():
            try: cl = open(f"/proc/{d}/cmdline").read().split("\0")
            except OSError: continue
            if cl[0].endswith("/postgres") and "-D" in cl and re.search(r"host=(/\S+)", DSN) and \
               cl[cl.index("-D")+1].startswith(re.search(r"host=(/\S+)", DSN).group(1)): return int(d)
    return None
PM = None
def pg_cpu():
    """CPU seconds of all PostgreSQL processes so far (live children + reaped ones)."""
    global PM
    PM = PM or postmaster()
    if not PM: return 0.0
    p = pstat(PM); t = p["u"]+p["s"]+p["cu"]+p["cs"]
    for d in os.listdir("/proc"):
        if d.isdigit():
            q = pstat(d)
            if q and q["ppid"] == PM: t += q["u"]+q["s"]
    return t
def sys_cpu():
    f = [int(x)/HZ for x in open("/proc/stat").readline().split()[1:9]]
    return dict(total=sum(f), busy=sum(f)-f[3]-f[4], iowait=f[4], steal=f[7])
def daemon_cpu():
    t = 0.0
    for d in os.listdir("/proc"):
        if d.isdigit():
            try: cl = open(f"/proc/{d}/cmdline").read()
            except OSError: continue
            if cl.startswith("nix-daemon"):
                q = pstat(d)
                if q: t += q["u"]+q["s"]+q["cu"]+q["cs"]
    return t

def quiet(limit):
    """Wait (at most `limit` seconds) until the machine is otherwise idle (<8% busy for 1.5 s)."""
    end = time.monotonic() + limit; ok = 0
    while time.monotonic() < end and ok < 3:
        a = sys_cpu(); time.sleep(0.5); b = sys_cpu()
        ok = ok + 1 if (b["busy"]-a["busy"]) < 0.08*(b["total"]-a["total"]) else 0

class Runner:
    def __init__(self, a, tag):
        # A new folder for each run, and nothing deleted before: for minutes ext4 walks over the inodes of deleted files whenever
        # it makes one nearby, which would count as CPU time of the queue runner's logs and roots. bench.sh clears up at its end.
        os.makedirs(BENCH_DIR + "/runs", exist_ok=True); d = tempfile.mkdtemp(prefix=tag + "-", dir=BENCH_DIR + "/runs"); os.makedirs(d + "/data")
        mf = d + "/machines"
        with open(mf, "w") as f:
            m = re.fullmatch(r"fake:(\d+)x(\d+)", a.machines); l = re.fullmatch(r"localhost:(\d+)", a.machines)
            if a.machines == "none": f.write("localhost x86_64-linux - 0 1\n")
            elif a.machines == "mismatch": f.write("localhost aarch64-linux - 8 1\n")
            elif l: f.write(f"localhost x86_64-linux - {l.group(1)} 1\n")
            elif m:
                for i in range(int(m.group(1))): f.write(f"m{i} x86_64-linux - {m.group(2)} 1\n")
            else: f.write(open(a.machines).read())
        conf = {"queue_runner_metrics_address": f"127.0.0.1:{PROM_PORT}", "gc_roots_dir": d + "/roots",
                "max_unsupported_time": "100000"}
        conf.update(kv.split("=", 1) for kv in a.conf)
        with open(d + "/hydra.conf", "w") as f:
            for k, v in conf.items(): f.write(f"{k} = {v}\n")
        env = dict(os.environ, LOGNAME=getpass.getuser(), HOME=os.path.expanduser("~"), HYDRA_DATA=d + "/data", HYDRA_CONFIG=d + "/hydra.conf",
                   HYDRA_DBI="dbi:Pg:" + DSN.replace(" ", ";") + ";application_name=runner", NIX_REMOTE_SYSTEMS=mf)
        env["PATH"] = HERE + "/fake-ssh:" + env["PATH"]
        env.pop("NIX_REMOTE", None)
        if a.store == "daemon": env["NIX_REMOTE"] = "daemon"
        for kv in a.env: k, v = kv.split("=", 1); env[k] = v
        self.log = f"{d}/runner.log"
        self.c0 = (pg_cpu(), sys_cpu(), daemon_cpu(), sum(os.times()[:2]))
        self.t0 = time.monotonic()
        self.p = subprocess.Popen([a.runner] + a.runner_arg, env=env, stdin=subprocess.DEVNULL,
                                  stdout=open(self.log, "wb"), stderr=subprocess.STDOUT, cwd=d, start_new_session=True)
        self.maxthr = 0; self.stop_ev = threading.Event(); self.rss_samples = []
        self.th = threading.Thread(target=self._sample, daemon=True); self.th.start()
        self.probe = a.probe
    def _sample(self):
        while not self.stop_ev.wait(0.1):
            s = pstat(self.p.pid)
            if s: self.maxthr = max(self.maxthr, s["thr"])
    def rss(self):
        t = open(f"/proc/{self.p.pid}/status").read()
        g = lambda k: int(re.search(k + r":\s+(\d+)", t).group(1)) / 1024
        return g("VmRSS"), g("VmHWM")
    def prom(self):
        try: t = urllib.request.urlopen(f"http://127.0.0.1:{PROM_PORT}/metrics", timeout=5).read().decode()
        except Exception: return {}
        return {m.group(1): float(m.group(2)) for m in re.finditer(r"^(\w+)(?:\{[^}]*\})? (\S+)$", t, re.M)}
    def wait_loaded(self, cur, n, timeout=3600, checks=1):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.p.poll() is not None: raise SystemExit("runner exited; see " + self.log)
            if self.probe == "prom":
                m = self.prom()
                if m.get("hydraqueuerunner_queue_checks_finished_total", 0) >= checks and \
                   (n == 0 or m.get("hydraqueuerunner_queue_build_loads_total", 0) >= n): return time.monotonic()
                time.sleep(0.02)
            elif self.probe == "status":
                cur.execute("notify dump_status"); time.sleep(0.1)
                cur.execute("select status from systemstatus where what='queue-runner'"); r = cur.fetchone()
                if r and jl(r[0]).get("nrQueuedBuilds") == n: return time.monotonic()
            else:
                if len(re.findall(self.probe[4:].encode(), open(self.log, "rb").read())) >= checks: return time.monotonic()
                time.sleep(0.02)
        raise SystemExit("timeout waiting for load")
    def wait_idle(self, cur): return self.wait_loaded(cur, 0)
    def cpu(self):
        s = pstat(self.p.pid); g = pg_cpu(); y = sys_cpu(); d = daemon_cpu()
        me = os.times(); own = s["u"]+s["s"]+s["cu"]+s["cs"]+g-self.c0[0]+d-self.c0[2]+me.user+me.system-self.c0[3]
        return dict(cpu_foreign=round(y["busy"]-self.c0[1]["busy"]-own, 2), cpu_self=round(s["u"]+s["s"], 2), cpu_user=round(s["u"], 2), cpu_sys=round(s["s"], 2),
                    cpu_children=round(s["cu"]+s["cs"], 2), cpu_pg=round(g-self.c0[0], 2), cpu_daemon=round(d-self.c0[2], 2),
                    cpu_busy_all=round(y["busy"]-self.c0[1]["busy"], 2), iowait=round(y["iowait"]-self.c0[1]["iowait"], 2))
    def stop(self):
        self.stop_ev.set()
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try: self.p.wait(10)
            except subprocess.TimeoutExpired: self.p.kill(); self.p.wait()

def jl(x): return x if isinstance(x, dict) else json.loads(x)
def status(cur):
    cur.execute("listen status_dumped; notify dump_status"); time.sleep(0.3)
    cur.execute("select status from systemstatus where what='queue-runner'"); r = cur.fetchone()
    return jl(r[0]) if r else {}

def xacts(cur):
    cur.execute("select pg_stat_force_next_flush()")
    cur.execute("select xact_commit+xact_rollback from pg_stat_database where datname=current_database()"); return cur.fetchone()[0]

def calib():
    """Milliseconds for a fixed CPU job (sha256 of 32 MB x 2); compare between runs to notice a slower/busier machine."""
    import hashlib
    b = bytes(32 << 20); t = time.process_time(); hashlib.sha256(b); hashlib.sha256(b); return round((time.process_time() - t) * 1000, 1)

def emit(a, res):
    res["calib_ms"] = calib()
    res = dict(test=a.test, label=a.label, graph=a.graph, machines=getattr(a, "machines", None), store=getattr(a, "store", None), **res)
    open(BENCH_DIR + "/results.jsonl", "a").write(json.dumps(res) + "\n"); print(json.dumps(res), flush=True); return res

def medians(rs):
    if len(rs) < 2: return
    out = {}
    for k in rs[0]:
        v = [r[k] for r in rs if isinstance(r.get(k), (int, float)) and not isinstance(r.get(k), bool)]
        if v: out[k] = round(statistics.median(v), 3)
    print("MEDIAN", json.dumps(out), flush=True)

def listen(*chs):
    c = connect(); cur = c.cursor()
    for ch in chs: cur.execute("listen " + ch)
    return c
def notes(c, timeout):
    if not c.notifies:
        select.select([c], [], [], timeout)
        c.poll()
    n = list(c.notifies); c.notifies.clear(); return n

# ---------------------------------------------------------------- tests
def t_load(a, g):
    c = connect(); cur = c.cursor(); delete_outputs(g); reset_db(cur)
    tc = connect(False); insert_builds(tc, g); tc.commit(); cur.execute("vacuum analyze builds")
    x0 = xacts(cur); r = Runner(a, "load")
    try:
        t = r.wait_loaded(cur, len(g)) - r.t0
        rss, hwm = r.rss(); cpu = r.cpu(); st = {}
        try: st = status(cur)
        except Exception: pass
        return emit(a, dict(n=len(g), secs=round(t, 3), builds_per_s=round(len(g)/t, 1), rss_mb=round(rss, 1), hwm_mb=round(hwm, 1),
            kb_per_step=round(rss*1024/len(g), 2), threads=r.maxthr, queued=st.get("nrQueuedBuilds"), steps=st.get("nrUnfinishedSteps"),
            runnable=st.get("nrRunnableSteps"), disp_wakeups=st.get("nrDispatcherWakeups"), disp_ms=st.get("dispatchTimeMs"), **cpu))
    finally: r.stop()

def wait_finished(lc, cur, n, r, t0, timeout=3600, on_tick=None):
    """Wait until n builds are finished; returns (first step_started, first build_finished, last) relative to t0."""
    first_start = first_fin = None; nstart = nfin = 0; last = time.monotonic(); tick = 0
    while True:
        for m in notes(lc, 0.2):
            t = time.monotonic() - t0
            if m.channel == "step_started":
                nstart += 1; first_start = first_start or t
            elif m.channel == "build_finished":
                nfin += 1; first_fin = first_fin or t; tl = t
        if on_tick: on_tick()
        if nfin >= n: return first_start, first_fin, tl, nstart
        if time.monotonic() - last > 1:
            last = time.monotonic()
            cur.execute("select count(*) from builds where finished=0")
            if cur.fetchone()[0] == 0: return first_start, first_fin, last - t0, nstart
            if r.p.poll() is not None: raise SystemExit("runner exited; see " + r.log)
            if last - t0 > timeout: raise SystemExit("timeout")

def t_e2e(a, g, sampler=None):
    c = connect(); cur = c.cursor(); delete_outputs(g); reset_db(cur)
    lc = listen("step_started", "build_finished")
    r = Runner(a, "e2e")
    try:
        r.wait_idle(cur); time.sleep(0.5)
        tc = connect(False); ids = insert_builds(tc, g); tc.cursor().execute("notify builds_added, '%d'" % ids[0])
        x0 = xacts(cur); r.c0 = (pg_cpu(), sys_cpu(), daemon_cpu(), sum(os.times()[:2])); s0 = pstat(r.p.pid)
        tc.commit(); t0 = time.monotonic()
        fs, ff, tl, ns = wait_finished(lc, cur, len(g), r, t0, on_tick=sampler)
        cpu = r.cpu(); rss, hwm = r.rss(); time.sleep(0.3); st = {}
        try: st = status(cur)
        except Exception: pass
        cur.execute("select count(*) filter (where buildstatus=0), count(*) from builds"); ok, tot = cur.fetchone()
        r.stop(); time.sleep(0.3); x1 = xacts(cur)
        res = dict(n=len(g), ok=ok, secs=round(tl, 3), steps_per_s=round(len(g)/tl, 1), first_started=fs and round(fs, 4), steps_started=ns,
            first_finished=ff and round(ff, 4), rss_mb=round(rss, 1), hwm_mb=round(hwm, 1), threads=r.maxthr, xacts_per_step=round((x1-x0)/len(g), 2),
            disp_wakeups=st.get("nrDispatcherWakeups"), disp_ms=st.get("dispatchTimeMs"), read_ms=st.get("buildReadTimeMs"),
            nr_db_conns=st.get("nrDbConnections"), **cpu)
        return res if sampler else emit(a, res)
    finally: r.stop()

def t_conns(a, g):
    c2 = connect(); k = c2.cursor(); mx = dict(conns=0, busy=0, building=0)
    def sample():
        k.execute("select count(*) from pg_stat_activity where backend_type = 'client backend'"
                                " and datname = current_database() and application_name <> 'bench'"); mx["conns"] = max(mx["conns"], k.fetchone()[0])
        k.execute("select count(*), count(*) filter (where busy=30) from buildsteps where busy<>0")
        x = k.fetchone(); mx["busy"] = max(mx["busy"], x[0]); mx["building"] = max(mx["building"], x[1])
    res = t_e2e(a, g, sample)
    return emit(a, dict(res, max_conns=mx["conns"], max_busy_steps=mx["busy"], max_building=mx["building"]))

def t_latency(a, g):
    """Needs a graph with layers=1 and width >= count. Also samples BuildSteps.busy>=30 ("building") by polling."""
    g = g[:a.count]; c = connect(); cur = c.cursor(); delete_outputs(g); reset_db(cur)
    lc = listen("step_started", "build_started", "build_finished"); r = Runner(a, "latency")
    S, B, F = [], [], []
    try:
        r.wait_idle(cur); time.sleep(1)
        for x in g:
            tc = connect(False); ids = insert_builds(tc, [x]); tc.cursor().execute("notify builds_added, '%d'" % ids[0])
            tc.commit(); t0 = time.monotonic(); tc.close(); s = b = f = None
            while f is None:
                if b is None and a.poll_building:
                    cur.execute("select 1 from buildsteps where build=%s and (busy>=30 or busy=0)", (ids[0],))
                    if cur.fetchone(): b = time.monotonic() - t0
                for m in notes(lc, 0.001 if (b is None and a.poll_building) else 5):
                    t = time.monotonic() - t0
                    if m.channel == "step_started" and s is None: s = t
                    if m.channel == "build_finished": f = t
                if time.monotonic() - t0 > 60: raise SystemExit("timeout; see " + r.log)
            S.append(s); F.append(f); B.append(b)
            time.sleep(a.gap)
        q = lambda v, p: round(sorted(v)[min(len(v)-1, int(len(v)*p))]*1000, 2) if v and v[0] is not None else None
        return emit(a, dict(n=len(g), started_med_ms=q(S, .5), started_p99_ms=q(S, .99), building_med_ms=q(B, .5), building_p99_ms=q(B, .99),
            finished_med_ms=q(F, .5), finished_p99_ms=q(F, .99), finished_min_ms=round(min(F)*1000, 2), **r.cpu()))
    finally: r.stop()

def t_restart(a, g):
    c = connect(); cur = c.cursor(); delete_outputs(g); reset_db(cur)
    tc = connect(False); insert_builds(tc, g); tc.commit(); cur.execute("vacuum analyze builds")
    lc = listen("step_started", "build_finished"); r = Runner(a, "restart")
    try:
        fs = ff = None; end = time.monotonic() + 3600
        while (ff is None) and time.monotonic() < end:
            for m in notes(lc, 0.2):
                t = time.monotonic() - r.t0
                if m.channel == "step_started": fs = fs or t
                if m.channel == "build_finished": ff = ff or t
        loaded = r.wait_loaded(cur, 0) - r.t0
        cur.execute("select count(*) from builds where finished=1"); done = cur.fetchone()[0]
        rss, hwm = r.rss()
        return emit(a, dict(n=len(g), first_started=round(fs, 3), first_finished=round(ff, 3), loaded=round(loaded, 3), finished_when_loaded=done,
                            rss_mb=round(rss, 1), hwm_mb=round(hwm, 1), **r.cpu()))
    finally: r.stop()

def t_arrive(a, g):
    """How long builds that arrive take to load: on an idle queue runner, or (--sleepers G) while the builds of graph G, which
    should sleep for long, keep slots busy. Their number stays the same until the end, or the run is worth nothing."""
    c = connect(); cur = c.cursor(); s = load_graph(a.sleepers) if a.sleepers else []
    delete_outputs(g); delete_outputs(s); reset_db(cur)
    lc = listen("step_started", "step_finished"); r = Runner(a, "arrive")
    try:
        r.wait_idle(cur); time.sleep(0.5); sc = listen("status_dumped"); st = connect().cursor()
        def queued():
            # Asked anew each time, since a page of metrics may be half a second old.
            st.execute("notify dump_status"); end = time.monotonic() + 60
            while not notes(sc, 1):
                if time.monotonic() > end: raise SystemExit("no answer to dump_status; see " + r.log)
            st.execute("select status from systemstatus where what='queue-runner'"); return jl(st.fetchone()[0])["nrQueuedBuilds"]
        if s:
            tc = connect(False); ids = insert_builds(tc, s); tc.cursor().execute("notify builds_added, '%d'" % ids[0]); tc.commit()
            n = 0; end = time.monotonic() + 60
            while n < len(s):
                n += sum(m.channel == "step_started" for m in notes(lc, 1))
                if time.monotonic() > end: raise SystemExit("the slots are not busy; see " + r.log)
        before = queued(); tc = connect(False); ids = insert_builds(tc, g); tc.cursor().execute("notify builds_added, '%d'" % ids[0])
        c0 = pstat(r.p.pid); tc.commit(); t0 = time.monotonic(); end = t0 + 600
        while queued() < before + len(g):
            if time.monotonic() > end: raise SystemExit("timeout waiting for load")
        t = time.monotonic() - t0; c1 = pstat(r.p.pid)
        ended = sum(m.channel == "step_finished" for m in notes(lc, 0.1))
        cur.execute("select count(*) from buildsteps where busy <> 0"); busy = cur.fetchone()[0]
        return emit(a, dict(n=len(g), secs=round(t, 3), busy=busy, ended=ended, cpu_load=round(c1["u"]+c1["s"]-c0["u"]-c0["s"], 2), **r.cpu()))
    finally: r.stop()

def t_nixbuild(a, g):
    delete_outputs(g); env = dict(os.environ)
    if a.store == "daemon": env["NIX_REMOTE"] = "daemon"
    y0 = sys_cpu(); t0 = time.monotonic()
    p = subprocess.Popen(["xargs", "-a", "-", "-s", "2000000", "nix-store", "-r", f"-j{a.jobs}"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, env=env) if False else \
        subprocess.Popen(["nix-store", "-r", f"-j{a.jobs}"] + [x["d"] for x in g], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    _, st, ru = os.wait4(p.pid, 0); t = time.monotonic() - t0; y = sys_cpu()
    return emit(a, dict(n=len(g), jobs=a.jobs, rc=st, secs=round(t, 3), steps_per_s=round(len(g)/t, 1), cpu_tree=round(ru.ru_utime+ru.ru_stime, 2),
                        hwm_mb=round(ru.ru_maxrss/1024, 1), cpu_busy_all=round(y["busy"]-y0["busy"], 2)))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sp = ap.add_subparsers(dest="test", required=True)
    s = sp.add_parser("pg-init"); s.add_argument("--sql", required=True)
    s = sp.add_parser("gen"); s.add_argument("name"); s.add_argument("--salt"); s.add_argument("--cmd", default="echo > $out"); s.add_argument("--system", default="x86_64-linux")
    for k, v in dict(layers=20, width=50, inputs=5, window=10, srcs=2, pad=1500).items(): s.add_argument("--" + k, type=int, default=v)
    s = sp.add_parser("clean"); s.add_argument("--graph", required=True)
    for t in ("load", "e2e", "conns", "latency", "restart", "arrive", "nixbuild"):
        s = sp.add_parser(t); s.add_argument("--graph", required=True); s.add_argument("--limit", type=int)
        s.add_argument("--label", default="hydrad"); s.add_argument("--repeat", type=int, default=1); s.add_argument("--store", default="direct"); s.add_argument("--quiet", type=float, default=0)
        if t == "nixbuild": s.add_argument("--jobs", type=int, default=8); continue
        s.add_argument("--runner", default=os.environ.get("BENCH_RUNNER", "hydra-queue-runner"))
        s.add_argument("--runner-arg", action="append", default=[]); s.add_argument("--machines", default="none")
        s.add_argument("--conf", action="append", default=[]); s.add_argument("--env", action="append", default=[]); s.add_argument("--probe", default="prom")
        if t == "arrive": s.add_argument("--sleepers")
        if t == "latency":
            s.add_argument("--count", type=int, default=50); s.add_argument("--gap", type=float, default=0.2); s.add_argument("--poll-building", action="store_true")
    a = ap.parse_args()
    if a.test == "pg-init": return pg_init(a)
    if a.test == "gen": return gen(a)
    g = load_graph(a.graph, getattr(a, "limit", None))
    if a.test == "clean": return delete_outputs(g)
    f = globals()["t_" + a.test]; rs = []
    for _ in range(a.repeat): quiet(a.quiet); rs.append(f(a, g))
    medians(rs)

if __name__ == "__main__": main()
