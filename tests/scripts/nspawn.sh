#!/usr/bin/env bash
# Does the installed unit really work under systemd? Boots a Debian 13 container with PostgreSQL and Nix, installs hydrad into
# it, starts hydrad-queue-runner.service with all its restrictions and lets it build a derivation through nix-daemon.
# Needs root, debootstrap, systemd-nspawn (apt install debootstrap systemd-container) and Debian's mirror; takes minutes.
# Not part of `make test`.   usage: nspawn.sh [DIR]     DIR (default /var/tmp/hydrad-nspawn) keeps the base system.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=${1:-/var/tmp/hydrad-nspawn}
suite=trixie
step() { echo "== nspawn: $*"; }
die() { echo "nspawn: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || die "needs root"
for program in debootstrap systemd-nspawn; do
    command -v "$program" >/dev/null || die "$program is missing: apt install debootstrap systemd-container"
done
[ -x target/release/hydrad ] || die "target/release/hydrad does not exist: run \`make release\`"

base=$dir/base root=$dir/root
inside() { systemd-nspawn -q --register=no --keep-unit -D "$1" /bin/sh -euc "$2"; }
if [ ! -e "$base/.complete" ]; then
    step "making a $suite system in $base"
    rm -rf "$base"
    mkdir -p "$dir"
    debootstrap --variant=minbase "$suite" "$base" >"$dir/debootstrap.log" 2>&1 || die "debootstrap failed: $dir/debootstrap.log"
    inside "$base" 'export DEBIAN_FRONTEND=noninteractive
        apt-get -q update && apt-get -q install -y --no-install-recommends systemd systemd-sysv dbus postgresql nix-bin nix-setup-systemd openssh-client
        apt-get clean' >"$dir/packages.log" 2>&1 || die "installing packages failed: $dir/packages.log"
    touch "$base/.complete"
fi
step "a copy of it, with hydrad installed"
rm -rf "$root"
cp -a --reflink=auto "$base" "$root"
make install DESTDIR="$root" >/dev/null
cat >>"$root/etc/nix/nix.conf" <<'END'
trusted-users = root hydra
substituters =
END
cat >"$root/root/try.sh" <<'END'
#!/bin/sh
# Runs inside, as a unit; its verdict is /root/verdict.
set -eu
exec >/root/try.log 2>&1
set -x
systemd-sysusers
systemd-tmpfiles --create
systemctl start postgresql nix-daemon.socket
until runuser -u postgres -- psql -c 'select 1' >/dev/null; do sleep 0.5; done
runuser -u postgres -- createuser hydra
runuser -u postgres -- createdb -O hydra hydra
runuser -u hydra -- env HYDRA_DATA=/var/lib/hydra /usr/local/bin/hydrad init
systemctl daemon-reload
systemctl start hydrad-queue-runner
systemctl is-active hydrad-queue-runner
cat >/tmp/job.nix <<'NIX'
{ hello = derivation { name = "hello"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
    args = [ "-c" "echo hello > $out" ]; }; }
NIX
runuser -u hydra -- env HOME=/var/lib/hydra NIX_REMOTE=daemon HYDRA_DATA=/var/lib/hydra HYDRA_CONFIG=/etc/hydrad/hydra.conf \
    timeout 120 /usr/local/bin/hydrad enqueue --project demo --jobset main --wait /tmp/job.nix
finished=$(runuser -u postgres -- psql -At hydra -c "select count(*) from Builds where finished = 1 and buildstatus = 0")
[ "$finished" = 1 ]
[ -n "$(ls /nix/var/nix/gcroots/hydra)" ]
main=$(systemctl show -p MainPID --value hydrad-queue-runner)
systemctl reload hydrad-queue-runner
systemctl is-active hydrad-queue-runner
[ "$(systemctl show -p MainPID --value hydrad-queue-runner)" = "$main" ]
systemctl stop hydrad-queue-runner
[ "$(systemctl show -p Result --value hydrad-queue-runner)" = success ]
echo good >/root/verdict
END
chmod 755 "$root/root/try.sh"
cat >"$root/etc/systemd/system/try.service" <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=-/root/try.sh
ExecStopPost=/bin/sh -c 'journalctl -b -u hydrad-queue-runner >/root/hydrad.log; systemctl poweroff --no-block'
[Install]
WantedBy=graphical.target
END
systemctl --root="$root" enable try.service >/dev/null 2>&1
systemctl --root="$root" set-default graphical.target >/dev/null 2>&1
step "booting"
timeout 600 systemd-nspawn -q --register=no --keep-unit -D "$root" -b >"$dir/boot.log" 2>&1 || true
if [ "$(cat "$root/root/verdict" 2>/dev/null)" != good ]; then
    tail -n 30 "$root/root/try.log" "$root/root/hydrad.log" >&2 || true
    die "it did not work; see $root/root/try.log, $root/root/hydrad.log, $dir/boot.log"
fi
step "hydrad built a derivation under its unit's restrictions, reloaded and stopped"
