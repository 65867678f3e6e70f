#!/usr/bin/python3
"""Benchmark of the notifier: how fast, how soon and with how much memory it tells a web server of many events, while another one hangs.

usage: notify.py [--events 100000] [--threads 4] [--paced 5000] [--rate 200] [--program hydrad] [--label TEXT] [--no-hang] [--quiet SECS]

1. EVENTS events `build_started` (each of another build, as Hydra's queue runner announces them: NOTIFY alone) are committed at once.
   A web hook on loopback counts them; a second one accepts connections and never answers. From the commit to the arrival of each.
2. PACED more, RATE a second, each in a transaction of its own: the same, when there is no queue.
Results: one JSON line in $BENCH_DIR/results.jsonl and printed. Database and environment as for bench.py.
"""
import argparse, asyncio, json, multiprocessing, os, re, signal, socket, subprocess, tempfile, time
import bench

def serve(sock, count, array):
    """Answers every request with 200 and writes down when it came. `array`: seconds by build; `count`: requests."""
    number = re.compile(rb'"build":\s*(\d+)'); length = re.compile(rb"content-length: (\d+)", re.I)
    class Conn(asyncio.Protocol):
        def connection_made(self, transport): self.transport, self.rest = transport, b""
        def data_received(self, data):
            self.rest += data
            while (end := self.rest.find(b"\r\n\r\n")) >= 0:
                m = length.search(self.rest, 0, end); size = end + 4 + (int(m.group(1)) if m else 0)
                if len(self.rest) < size: return
                build = int(number.search(self.rest, end).group(1)); self.rest = self.rest[size:]
                if not array[build]: array[build] = time.monotonic(); count.value += 1
                else: count.value += 1_000_000_000
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    async def main():
        server = await asyncio.get_running_loop().create_server(Conn, sock=sock)
        await server.serve_forever()
    signal.signal(signal.SIGINT, signal.SIG_IGN); asyncio.run(main())

def listening():
    sock = socket.socket(); sock.bind(("127.0.0.1", 0)); sock.listen(1024); return sock, sock.getsockname()[1]

def rss(pid):
    text = open(f"/proc/{pid}/status").read()
    return [round(int(re.search(key + r":\s+(\d+)", text).group(1)) / 1024, 1) for key in ("VmRSS", "VmHWM")]

def quantile(values, share): values = sorted(values); return round(values[min(len(values) - 1, int(len(values) * share))] * 1000, 2)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in dict(events=100_000, threads=4, paced=5_000, rate=200).items(): ap.add_argument("--" + key, type=int, default=value)
    ap.add_argument("--program", default=os.path.dirname(os.path.realpath(os.environ.get("BENCH_RUNNER", "hydrad"))) + "/hydrad")
    ap.add_argument("--label", default="notify"); ap.add_argument("--no-hang", action="store_true"); ap.add_argument("--quiet", type=float, default=0)
    a = ap.parse_args(); total = a.events + a.paced; ids = total + 1
    conn = bench.connect(); cur = conn.cursor(); bench.reset_db(cur)
    cur.execute("truncate hydrad.events, hydrad.notifier cascade")
    cur.execute("insert into builds (id, finished, timestamp, jobset_id, job, drvpath, system, nixname) select n, 0, 100, (select id from jobsets"
                " where project = 'bench' and name = 'js'), 'job' || n, '/nix/store/' || n || '.drv', 'x86_64-linux', 'name' from generate_series(1, %s) n", (total,))
    cur.execute("vacuum analyze builds")
    sock, port = listening(); hanging, hanging_port = listening()
    count = multiprocessing.RawValue("q", 0); array = multiprocessing.RawArray("d", ids)
    server = multiprocessing.Process(target=serve, args=(sock, count, array), daemon=True); server.start()
    os.makedirs(bench.BENCH_DIR + "/runs", exist_ok=True); d = tempfile.mkdtemp(prefix="notify-", dir=bench.BENCH_DIR + "/runs"); os.makedirs(d + "/data")
    hook = lambda name, port: f"<webhook>\nname = {name}\nurl = http://127.0.0.1:{port}/\nevents = buildStarted\n</webhook>\n"
    with open(d + "/hydra.conf", "w") as f:
        f.write(f"max-concurrent-notifications = {a.threads}\ncompress_build_logs = 0\n" + hook("counting", port) + ("" if a.no_hang else hook("hanging", hanging_port)))
    env = dict(os.environ, HYDRA_DATA=d + "/data", HYDRA_CONFIG=d + "/hydra.conf", HYDRA_DBI="dbi:Pg:" + bench.DSN.replace(" ", ";"))
    bench.quiet(a.quiet); log = d + "/notify.log"
    p = subprocess.Popen([a.program, "notify"], env=env, stdin=subprocess.DEVNULL, stdout=open(log, "wb"), stderr=subprocess.STDOUT, start_new_session=True)
    def wait(until, what, limit=1800):
        end = time.monotonic() + limit
        while not until():
            if p.poll() is not None: raise SystemExit("the notifier has ended; see " + log)
            if time.monotonic() > end: raise SystemExit(f"timeout waiting for {what}; see {log}")
            time.sleep(0.02)
    try:
        wait(lambda: b"notifier: active" in open(log, "rb").read(), "the start", 60)
        pg0, all0, me0, srv0 = bench.pg_cpu(), bench.sys_cpu(), os.times(), bench.pstat(server.pid)
        cur.execute("select count(pg_notify('build_started', n::text)) from generate_series(1, %s) n", (a.events,)); t0 = time.monotonic()
        wait(lambda: count.value >= min(10_000, a.events), "the first ones"); rss10k = rss(p.pid)[0]
        wait(lambda: count.value >= a.events, "all of them"); rss_all, hwm = rss(p.pid)
        secs = max(array) - t0; burst = [at - t0 for at in array[1:a.events + 1]]
        s, pg1, all1, me1, srv1 = bench.pstat(p.pid), bench.pg_cpu(), bench.sys_cpu(), os.times(), bench.pstat(server.pid)
        own = s["u"]+s["s"]+pg1-pg0+me1.user+me1.system-me0.user-me0.system+srv1["u"]+srv1["s"]-srv0["u"]-srv0["s"]
        wait(lambda: not ledger_behind(cur), "its ledger", 60)
        sent = {}; start = time.monotonic()
        for n in range(a.paced):
            pause = start + n / a.rate - time.monotonic()
            if pause > 0: time.sleep(pause)
            cur.execute("select pg_notify('build_started', %s)", (str(a.events + 1 + n),)); sent[a.events + 1 + n] = time.monotonic()
        wait(lambda: count.value >= total, "the paced ones")
        paced = [array[build] - at for build, at in sent.items()]
        wait(lambda: not ledger_behind(cur), "its ledger", 60)
        res = dict(test="notify", label=a.label, n=a.events, threads=a.threads, hanging=not a.no_hang, secs=round(secs, 2), events_per_s=round(a.events / secs, 1),
                   burst_p50_ms=quantile(burst, .5), burst_p99_ms=quantile(burst, .99), paced_n=a.paced, paced_rate=a.rate, paced_p50_ms=quantile(paced, .5),
                   paced_p99_ms=quantile(paced, .99), rss_10k_mb=rss10k, rss_mb=rss_all, hwm_mb=hwm, doubles=count.value // 1_000_000_000,
                   cpu_self=round(s["u"] + s["s"], 2), cpu_pg=round(pg1 - pg0, 2), cpu_foreign=round(all1["busy"] - all0["busy"] - own, 2), calib_ms=bench.calib())
        with open(bench.BENCH_DIR + "/results.jsonl", "a") as f: f.write(json.dumps(res) + "\n")
        print(json.dumps(res), flush=True)
    finally:
        if p.poll() is None:
            p.terminate()
            try: p.wait(90)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
        server.terminate(); server.join()

def ledger_behind(cur):
    cur.execute("select exists (select 1 from hydrad.deliveries where target = 'Webhook counting' and state = 'waiting')")
    return cur.fetchone()[0]

if __name__ == "__main__": main()
