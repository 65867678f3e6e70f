#!/usr/bin/env bash
# Makes the files beside it anew, with the installed Nix, below /tmp/hydrad-golden (the store directory is part of what
# is signed). The key is for these tests alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=/tmp/hydrad-golden
[ ! -e "$top" ] || { chmod -R u+w "$top"; rm -r "$top"; }
mkdir -p "$top"/{store,var,conf,home}
export NIX_STORE_DIR=$top/store NIX_STATE_DIR=$top/var NIX_LOG_DIR=$top/var/log NIX_CONF_DIR=$top/conf NIX_REMOTE=local
export HOME=$top/home XDG_CACHE_HOME=$top/home/.cache
printf 'build-users-group =\nsubstituters =\nsandbox = false\nexperimental-features = nix-command\n' > "$top/conf/nix.conf"
[ -s "$here/secret" ] || nix-store --generate-binary-cache-key golden-1 "$here/secret" "$here/public"
mkdir -p "$top/tree/sub/empty"
printf 'contents\n' > "$top/tree/sub/file"
printf '#!/bin/sh\n' > "$top/tree/run"
chmod +x "$top/tree/run"
: > "$top/tree/nothing"
printf 'x' > "$top/tree/a \"quoted\" näme"
ln -s sub/file "$top/tree/link"
cat > "$top/expr.nix" <<NIX
let dep = derivation { name = "dep"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo dep > \$out" ]; };
    tree = builtins.path { path = $top/tree; name = "tree"; };
in { two = derivation { name = "two-refs"; system = "x86_64-linux"; builder = "/bin/sh"; inherit dep;
       args = [ "-c" "echo \$dep \$out > \$out" ]; };
     tree = derivation { name = "uses-tree"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo \${tree} > \$out" ]; }; }
NIX
two=$(nix-store -r "$(nix-instantiate "$top/expr.nix" -A two)")
uses=$(nix-store -r "$(nix-instantiate "$top/expr.nix" -A tree)")
tree=$(nix-store -q --references "$uses")
nix copy --to "file://$top/cache?secret-key=$here/secret&write-nar-listing=true" "$two" "$tree"
hash() { basename "$1" | cut -c1-32; }
cp "$top/cache/$(hash "$two").narinfo" "$here/two-refs.narinfo"
cp "$top/cache/$(hash "$tree").ls" "$here/tree.ls"
nix-store --dump "$tree" > "$here/tree.nar"
