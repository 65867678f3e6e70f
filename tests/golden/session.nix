# The derivations of the recorded sessions and of the tests with a real Nix. No sandbox: the
# builders use the host's /bin/sh and nothing else of it.
let
  drv = name: script: attrs: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  } // attrs);
  dep = drv "dep" "echo dependency > $out" { };
in {
  inherit dep;
  multi = drv "multi" ''
    echo building multi
    mkdir -p $out/bin $out/nix-support $dev
    printf '#!/bin/sh\n' > $out/bin/tool
    chmod +x $out/bin/tool
    ln -s $dep $out/dep
    echo "file tool $out/bin/tool" > $out/nix-support/hydra-build-products
    echo $out > $dev/where
  '' { outputs = [ "out" "dev" ]; inherit dep; };
  fails = drv "fails" "echo trying; exit 3" { };
  slow = drv "slow" "echo slow; sleep 60" { };
  chatty = drv "chatty" "while :; do echo 0123456789012345678901234567890123456789; done" { };
  floating = drv "floating" "echo floating > $out" {
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
  elsewhere = drv "elsewhere" "exit 0" { system = "vax-vms"; };
}
