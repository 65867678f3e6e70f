# Derivations of every kind, for tests/golden/drv. How they are made is in README.md.
let
  base = {
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" "echo hello > $out" ];
  };
  drv = attrs: derivation (base // attrs);
  leaf = drv { name = "leaf"; };
  flat = drv {
    name = "flat.tar.gz";
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  };
  # Another way to fetch the same file: it hashes alike.
  flat-mirror = drv {
    name = "flat.tar.gz";
    mirror = "1";
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  };
  recursive = drv {
    name = "recursive";
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
    outputHash = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
  };
  sha1 = drv {
    name = "old-sha1";
    outputHashMode = "recursive";
    outputHashAlgo = "sha1";
    outputHash = "a9993e364706816aba3e25717850c26c9cd0d89d";
  };
  multi = drv {
    name = "multi-1.0";
    outputs = [ "out" "dev" "doc" ];
    inherit leaf flat;
    src = builtins.toFile "script.sh" "echo built\n";
  };
  top = drv {
    name = "top";
    inputs = [ multi.dev multi.out leaf flat-mirror recursive sha1 ];
    flat = flat;
  };
  escapes = drv {
    name = "escapes";
    args = [ "" "a\"b\\c\nd\re\tf" "\${x}" "ü€" ];
    value = "line1\na\"b\\";
    yes = true;
    no = false;
    nothing = null;
    number = 1.5;
    "odd key\"" = "x";
  };
  features = drv {
    name = "features";
    requiredSystemFeatures = [ "kvm" "big-parallel" "kvm" ];
    preferLocalBuild = true;
  };
  structured = drv {
    name = "structured";
    __structuredAttrs = true;
    outputs = [ "out" "lib" ];
    requiredSystemFeatures = [ "nixos-test" "kvm" ];
    preferLocalBuild = true;
    nested = { list = [ 1 2 "three" ]; text = "a\"b\n"; input = leaf; };
  };
  structured-plain = drv {
    name = "structured-plain";
    __structuredAttrs = true;
    a = 1;
  };
  floating = drv {
    name = "floating";
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
  deferred = drv { name = "deferred"; input = floating; };
  impure = drv { name = "impure"; __impure = true; };
in [
  top escapes features structured structured-plain deferred impure
]
