#!/usr/bin/env bash
# Install what the tests, the demo and the benchmark need and this machine lacks. Quiet if there is nothing to do.
# Debian and its kin: through apt-get, as root or with sudo. Elsewhere: say what is missing.
# A system PostgreSQL cluster that the package may create is never used; tests start private ones.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=() packages=()
# want PACKAGE WHAT TEST...: if TEST fails, WHAT is missing and PACKAGE brings it.
want() {
    local package=$1 what=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    missing+=("$what")
    packages+=("$package")
}
have() { command -v "$1"; }
have_postgres() { [ -n "${PG_BIN:-}" ] || compgen -G '/usr/lib/postgresql/*/bin/initdb' || have initdb; }
have_venv() { /usr/bin/python3 -c 'import venv, ensurepip'; }
have_prometheus_client() { /usr/bin/python3 -c 'import prometheus_client.parser'; }
have_psycopg2() { /usr/bin/python3 -c 'import psycopg2'; }

want build-essential "a C compiler (gcc)" have gcc
want make "make" have make
want git "git" have git
want mercurial "Mercurial (hg)" have hg
want subversion "Subversion (svn, svnadmin)" have svnadmin
want brz "Breezy (brz), for Bazaar" have brz
want darcs "darcs" have darcs
want postgresql "PostgreSQL's server programs (initdb, postgres)" have_postgres
want nix-bin "Nix (nix-store, nix-daemon)" have nix-store
want openssh-server "sshd" have sshd
want openssh-client "ssh, ssh-keygen" have ssh-keygen
want xz-utils "xz" have xz
want bzip2 "bzip2" have bzip2
want util-linux "unshare, setpriv" have unshare
want procps "ps" have ps
want openssl "openssl" have openssl
want python3-venv "venv and ensurepip for /usr/bin/python3 (the S3 server of the tests)" have_venv
want python3-prometheus-client "prometheus_client for /usr/bin/python3 (reads what /metrics says)" have_prometheus_client
want python3-psycopg2 "psycopg2 for /usr/bin/python3 (the benchmark)" have_psycopg2

if [ ${#missing[@]} -gt 0 ]; then
    echo "missing on this machine:"
    printf '  %s\n' "${missing[@]}"
    if ! have apt-get >/dev/null; then
        echo "This is not a Debian: install these with your own package manager and run me again." >&2
        exit 1
    fi
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo >/dev/null || { echo "Run as root: apt-get install ${packages[*]}" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "installing with apt-get: ${packages[*]}"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null >>"$log" 2>&1; }
    # Package lists may be absent or old; try with what is there, then with fresh ones.
    if ! apt install -y --no-install-recommends "${packages[@]}" &&
        ! { apt update && apt install -y --no-install-recommends "${packages[@]}"; }; then
        tail -n 20 "$log" >&2
        echo "apt-get failed. Try: apt-get update && apt-get install ${packages[*]}" >&2
        exit 1
    fi
    echo "installed."
fi

if ! have cargo >/dev/null; then
    echo "cargo is missing: install a Rust toolchain (1.95 or newer; Debian 12's own is too old) from https://rustup.rs" >&2
    exit 1
fi

"$(dirname "$0")/venv.sh"
