#!/usr/bin/env bash
# Does an installation come out right? Installs into a scratch directory and checks the systemd units (no complaint, exposure
# at most 3.0), users and directories, an upgrade over edited configuration, and that uninstall takes it all away.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

exposure_max=3.0
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
say() { echo "== installation: $*"; }
die() { echo "installation: $*" >&2; exit 1; }
quietly() {
    local out
    out=$("$@" 2>&1) || die "failed: $*"$'\n'"$out"
    [ -z "$out" ] || die "said something: $*"$'\n'"$out"
}
# Every file and link of the stage, sorted.
listing() { (cd "$stage" && find . ! -type d | sort); }
make_it() { make "$@" DESTDIR="$stage" PREFIX=/usr/local SYSCONFDIR=/etc HYDRA_USER=hydra BINARY=/bin/true; }

say "install"
make_it install >/dev/null
expected="./etc/hydrad/environment
./etc/hydrad/hydra.conf
./etc/hydrad/machines
./usr/local/bin/hydra-create-user
./usr/local/bin/hydra-eval-jobs
./usr/local/bin/hydra-eval-jobset
./usr/local/bin/hydra-evaluator
./usr/local/bin/hydra-init
./usr/local/bin/hydra-notify
./usr/local/bin/hydra-queue-runner
./usr/local/bin/hydra-send-stats
./usr/local/bin/hydra-update-gc-roots
./usr/local/bin/hydrad
./usr/local/lib/systemd/system/hydrad-evaluator.service
./usr/local/lib/systemd/system/hydrad-metrics.socket
./usr/local/lib/systemd/system/hydrad-notify.service
./usr/local/lib/systemd/system/hydrad-prune.service
./usr/local/lib/systemd/system/hydrad-prune.timer
./usr/local/lib/systemd/system/hydrad-queue-runner.service
./usr/local/lib/systemd/system/hydrad-send-stats.service
./usr/local/lib/systemd/system/hydrad-status.socket
./usr/local/lib/systemd/system/hydrad-update-gc-roots.service
./usr/local/lib/systemd/system/hydrad-update-gc-roots.timer
./usr/local/lib/systemd/system/hydrad.service
./usr/local/lib/sysusers.d/hydrad.conf
./usr/local/lib/tmpfiles.d/hydrad.conf
./usr/local/share/hydrad/grafana-hydrad.json
./usr/local/share/hydrad/prometheus-alerts.yml"
[ "$(listing)" = "$expected" ] || die "these files were installed: $(listing)"
[ "$(readlink "$stage/usr/local/bin/hydra-queue-runner")" = hydrad ] || die "hydra-queue-runner is not a link to hydrad"
! grep -rn '@[A-Z_]*@' "$stage/etc" "$stage/usr/local/lib" || die "placeholders were left"

units="$stage/usr/local/lib/systemd/system"
resident=("$units/hydrad.service" "$units/hydrad-queue-runner.service" "$units/hydrad-evaluator.service" "$units/hydrad-notify.service")
if command -v systemd-analyze >/dev/null; then
    for unit in hydrad.service hydrad-queue-runner.service hydrad-evaluator.service hydrad-notify.service hydrad-update-gc-roots.service hydrad-prune.service \
        hydrad-send-stats.service; do
        say "$unit"
        mkdir -p "$stage/verify"
        # verify wants programs that exist, and each unit by itself (they name each other in Conflicts=).
        sed "s|^\(Exec[A-Za-z]*=-\{0,1\}\)/usr/local/bin/hydrad|\1/bin/true|" "$units/$unit" >"$stage/verify/$unit"
        quietly systemd-analyze verify "$stage/verify/$unit"
        score=$(systemd-analyze security --offline=true --no-pager "$stage/verify/$unit" |
            sed -n 's/.*Overall exposure level[^:]*: \([0-9.]*\).*/\1/p')
        [ -n "$score" ] || die "$unit: systemd-analyze security gave no score"
        awk "BEGIN { exit !($score <= $exposure_max) }" || die "$unit: exposure $score, more than $exposure_max"
        rm -r "$stage/verify"
    done
    for key in Type=notify WatchdogSec= Restart=always OOMPolicy=continue User=hydra; do
        for unit in "${resident[@]}"; do grep -q "^$key" "$unit" || die "$unit lacks $key"; done
    done
    for unit in hydrad.service hydrad-evaluator.service; do
        # Evaluations get control groups of their own there.
        grep -q "^Delegate=yes" "$units/$unit" || die "$unit lacks Delegate=yes"
        ! grep -q "^ProtectControlGroups=yes" "$units/$unit" || die "$unit may not write control groups"
    done
    for timer in hydrad-update-gc-roots hydrad-prune; do
        say "$timer.timer"
        sed "s|^ExecStart=.*|ExecStart=/bin/true|" "$units/$timer.service" >"$stage/$timer.service"
        cp "$units/$timer.timer" "$stage"
        quietly systemd-analyze verify "$stage/$timer.timer"
        rm "$stage/$timer".{service,timer}
    done
else
    say "systemd-analyze is not installed: units not verified"
fi
stop_timeout=$(sed -n 's/^#stop_timeout = //p' conf/hydra.conf)
for unit in "${resident[@]}"; do
    unit_stop=$(sed -n 's/^TimeoutStopSec=//p' "$unit")
    [ "$unit_stop" -gt "$stop_timeout" ] || die "$unit: TimeoutStopSec=$unit_stop is not more than stop_timeout = $stop_timeout"
done

if command -v systemd-sysusers >/dev/null; then
    say "users and directories"
    mkdir -p "$stage/root/etc" "$stage/root/usr"
    users=$(systemd-sysusers --dry-run --root="$stage/root" "$stage/usr/local/lib/sysusers.d/hydrad.conf" 2>&1) || die "sysusers: $users"
    grep -q "user 'hydra'" <<<"$users" || die "sysusers would not make the user: $users"
    # Names are resolved inside the root, so give it one that knows the user.
    printf 'hydra:x:998:998::/var/lib/hydra:/usr/sbin/nologin\n' >"$stage/root/etc/passwd"
    printf 'hydra:x:998:\n' >"$stage/root/etc/group"
    if [ "$(id -u)" -eq 0 ]; then
        tmpfiles=(systemd-tmpfiles --create --root="$stage/root" "$stage/usr/local/lib/tmpfiles.d/hydrad.conf")
        quietly "${tmpfiles[@]}"
        [ "$(stat -c '%a %u' "$stage/root/nix/var/nix/gcroots/hydra")" = "2775 998" ] || die "wrong owner or mode of the GC roots"
        # What is there already keeps its owner: it may belong to Hydra's own services.
        chown 997:997 "$stage/root/var/lib/hydra/build-logs"
        chmod 0700 "$stage/root/var/lib/hydra/build-logs"
        quietly "${tmpfiles[@]}"
        [ "$(stat -c '%a %u' "$stage/root/var/lib/hydra/build-logs")" = "700 997" ] || die "an existing directory changed its owner or mode"
    fi
    rm -r "$stage/root"
fi

say "upgrade over edited configuration"
echo "max_db_connections = 5" >>"$stage/etc/hydrad/hydra.conf"
said=$(make_it install)
[[ $said == *"kept $stage/etc/hydrad/hydra.conf; this version's text is in $stage/etc/hydrad/hydra.conf.new"* ]] || die "install said only: $said"
grep -q '^max_db_connections = 5' "$stage/etc/hydrad/hydra.conf" || die "an edited hydra.conf was overwritten"
cmp -s conf/hydra.conf "$stage/etc/hydrad/hydra.conf.new" || die "hydra.conf.new is not this version's text"

say "uninstall"
make_it uninstall >/dev/null
[ "$(listing)" = "./etc/hydrad/hydra.conf" ] || die "uninstall left: $(listing)"

say "a program of somebody else's is not replaced"
mkdir -p "$stage/usr/local/bin"
echo foreign >"$stage/usr/local/bin/hydra-queue-runner"
if make_it install >/dev/null 2>&1; then die "a foreign hydra-queue-runner was replaced"; fi
make_it uninstall >/dev/null
[ "$(cat "$stage/usr/local/bin/hydra-queue-runner")" = foreign ] || die "uninstall removed a foreign hydra-queue-runner"
