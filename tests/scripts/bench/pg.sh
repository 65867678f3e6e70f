#!/usr/bin/env bash
# A private PostgreSQL for the benchmark, on DIR's socket and PORT.   usage: pg.sh init|init-once|start|stop DIR PORT
# PostgreSQL's defaults (fsync and synchronous_commit on) except max_connections=400 and shared_buffers=512MB. As root the
# server runs as postgres.
set -euo pipefail
bin=${PG_BIN:-$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1)}
dir=$2 port=${3:-15432}
as=()
[ "$(id -u)" -ne 0 ] || as=(runuser -u postgres --)
cd /
case $1 in
    init | init-once)
        [ "$1" = init ] || [ ! -d "$dir/data" ] || exit 0
        mkdir -p "$dir"
        [ "$(id -u)" -ne 0 ] || chown postgres "$dir"
        "${as[@]}" "$bin/initdb" -D "$dir/data" -A trust -U postgres --locale=C.UTF-8 >/dev/null
        printf "port=%s\nlisten_addresses='127.0.0.1'\nunix_socket_directories='%s'\nmax_connections=400\nshared_buffers=512MB\n" \
            "$port" "$dir" | "${as[@]}" tee -a "$dir/data/postgresql.conf" >/dev/null
        ;;
    start) "${as[@]}" "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w start >/dev/null ;;
    stop) "${as[@]}" "$bin/pg_ctl" -D "$dir/data" -m fast stop >/dev/null ;;
    *) echo "usage: $0 init|init-once|start|stop DIR PORT" >&2; exit 2 ;;
esac
