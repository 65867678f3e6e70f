# Jobs in sets of a hundred. Of each sixteen one fails, in one of ten ways in turn; `bad = false`: none does.
# `work`: how much each job computes by itself (1000 is about a quarter of a millisecond); `salt` makes other derivations of all;
# `recurse`: nix-instantiate finds them too.
{ n ? 400, bad ? true, salt ? "a", work ? 0, recurse ? false }:
let
  inherit (builtins) bitAnd deepSeq elemAt foldl' genList length listToAttrs seq toString;
  job = name: i: derivation {
    inherit name salt;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo > $out" ];
    sum = foldl' (a: b: a + b) 0 (genList (x: x + i) work);
  } // {
    meta = { description = "job ${toString i}"; license.shortName = "mit"; maintainers = [ { email = "a@example.org"; } ]; };
  };
  deep = x: 1 + deep (x + 1);
  eat = x: deepSeq (genList (i: genList (j: { v = j + x; w = "${toString j}"; }) 1000) 1000000) x;
  ways = i: [
    (throw "thrown ${toString i}")
    (abort "aborted ${toString i}")
    (job ({ }.nope) i)
    (job (1 + "x") i)
    (let x = y; y = x; in x)
    (job "d${toString (deep 0)}" i)
    (job "m${toString (eat 0)}" i)
    (job "bad name ! ${toString i}" i)
    42
    (job "aggregate" i // { _hydraAggregate = true; constituents = [ "is-never-looked-for" (throw "broken constituent of ${toString i}") ]; })
  ];
  one = i: if bad && bitAnd i 15 == 7 then elemAt (ways i) ((i / 16) - (i / 160) * 10) else job "j${toString i}" i;
  set = s: { name = "s${toString s}"; value = listToAttrs (genList (j: { name = "j${toString (s * 100 + j)}"; value = one (s * 100 + j); }) 100)
    // (if recurse then { recurseForDerivations = true; } else { }); };
in listToAttrs (genList set (n / 100))
