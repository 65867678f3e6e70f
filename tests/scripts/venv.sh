#!/usr/bin/env bash
# Make target/test-venv: a Python environment with the servers that tests start and no distribution packages (an S3
# server, moto, and Amazon's own client to look at it with), and another implementation of argon2 to check password hashes
# with, and a mail server (aiosmtpd). From PyPI, at fixed versions. Quiet if it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=target/test-venv
packages=(moto==5.2.5 boto3==1.44.5 py-partiql-parser==0.6.3 PyYAML==6.0.3 flask==3.1.3 flask-cors==6.0.5 argon2-cffi==25.1.0 \
    aiosmtpd==1.4.6 atpublic==7.0.0 attrs==26.1.0)

[ "$(cat "$venv/installed" 2>/dev/null)" = "${packages[*]}" ] && exit
echo "installing into $venv: ${packages[*]}"
rm -rf "$venv"
mkdir -p target
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { /usr/bin/python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"; } \
    </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "cannot install the S3 server and other parts of the tests; is pypi.org reachable (PIP_INDEX_URL names a mirror)?" >&2
    exit 1
fi
echo "${packages[*]}" >"$venv/installed"
