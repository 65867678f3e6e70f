# Synthetic derivation DAG. Evaluate with (`bench.py gen` does this):
#   nix-instantiate --eval --strict --json --read-write-mode dag.nix --argstr salt s1 --arg layers 20 --arg width 50 ...
# Result: JSON list of { n = name; d = drvPath; o = outPath; l = layer; }; all .drv files are written to the store.
# Inputs of derivation (l,j): `inputs` distinct-ish derivations of layer l-1 whose index lies in a window of
# `window` around j (so the closure of a layer-l derivation is about window*l^2/2, independent of the total size).
{ salt, layers ? 20, width ? 50, inputs ? 5, window ? 10, srcs ? 2, pad ? 1500
, cmd ? "echo > $out", system ? "x86_64-linux" }:
let
  inherit (builtins) genList elemAt toString concatLists toFile concatStringsSep;
  mod = a: b: a - (a / b) * b;
  nsrc = 50;
  srcFiles = genList (i: toFile "src-${toString i}.txt" "source ${salt} ${toString i}\n") nsrc;
  padText = concatStringsSep "" (genList (i: "0123456789abcdef") (pad / 16));
  mk = l: j: derivation ({
    name = "hb-${salt}-${toString l}-${toString j}";
    inherit system padText;
    builder = "/bin/sh";
    args = [ "-c" cmd ];
    srcs = genList (k: elemAt srcFiles (mod (j * 3 + l * 7 + k * 11) nsrc)) srcs;
    deps = if l == 0 then [] else
      genList (k: elemAt (elemAt all (l - 1))
        (mod (j + (mod (j * 31 + l * 17 + k * (window / inputs + 1)) window) + width) width)) inputs;
  });
  all = genList (l: genList (j: mk l j) width) layers;
in concatLists (genList (l: map (d: { n = d.name; d = d.drvPath; o = d.outPath; inherit l; }) (elemAt all l)) layers)
