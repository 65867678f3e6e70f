#!/usr/bin/env bash
# Format and clippy. A toolchain without these components (a distribution's rustc) is told so and not held up.
set -euo pipefail
cd "$(dirname "$0")/../.."

for component in rustfmt clippy; do
    tool=cargo-${component/rustfmt/fmt}
    if ! "$tool" --version >/dev/null 2>&1 && command -v rustup >/dev/null; then
        echo "adding $component to the Rust toolchain"
        rustup component add "$component" >/dev/null 2>&1 || true
    fi
    if ! "$tool" --version >/dev/null 2>&1; then
        echo "== $component is not installed: not checked (rustup component add $component)" >&2
        continue
    fi
    case $component in
        rustfmt)
            echo "== format"
            cargo fmt --check || { echo "not formatted as cargo fmt does: run it" >&2; exit 1; }
            ;;
        clippy)
            echo "== clippy"
            cargo clippy --quiet --all-targets -- -D warnings
            ;;
    esac
done
