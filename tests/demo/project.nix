# A small project to try hydrad with: a library, a program, its tests, a tarball, a manual, a release; and jobs that must
# not succeed, each in its own way. It needs no nixpkgs: builders use /bin/sh, coreutils and gcc of the machine they run
# on, without a sandbox.
#
# Some jobs can only be built where the feature demo-ssh is, others only where demo-local is, so that two machines take
# part and paths travel between them in both directions.
let
  version = "1.0";
  src = builtins.path { path = ./src; name = "greet-src"; };

  # A shell script with the host's programs. `meta` is for Hydra and does not enter the derivation.
  job = { name, script, feature ? null, meta ? { }, ... }@args:
    derivation
      (removeAttrs args [ "script" "feature" "meta" ] // {
        system = builtins.currentSystem;
        builder = "/bin/sh";
        args = [ "-e" "-u" "-c" script ];
        PATH = "/usr/bin:/bin";
        requiredSystemFeatures = if feature == null then [ ] else [ feature ];
      }) // { inherit meta; };
in
rec {
  libgreet = job {
    name = "libgreet-${version}";
    outputs = [ "out" "dev" ];
    inherit src;
    feature = "demo-ssh";
    meta.description = "A library in two outputs";
    meta.schedulingPriority = 200;
    script = ''
      mkdir -p "$out/lib" "$dev/include"
      cp "$src/greet.h" "$dev/include/"
      gcc -O2 -Wall -fPIC -shared -Wl,-soname,libgreet.so -o "$out/lib/libgreet.so" "$src/greet.c"
      echo "built $out/lib/libgreet.so"
    '';
  };

  greet = job {
    name = "greet-${version}";
    inherit src;
    lib = libgreet;
    inherit (libgreet) dev;
    feature = "demo-local";
    meta.description = "A program linked with the library";
    script = ''
      mkdir -p "$out/bin" "$out/nix-support"
      gcc -O2 -Wall -I"$dev/include" -o "$out/bin/greet" "$src/main.c" -L"$lib/lib" -lgreet -Wl,-rpath,"$lib/lib"
      echo "file binary-dist $out/bin/greet" > "$out/nix-support/hydra-build-products"
    '';
  };

  tests = job {
    name = "greet-tests-${version}";
    inherit greet;
    feature = "demo-ssh";
    meta.description = "The program's tests, with a report and metrics";
    script = ''
      mkdir -p "$out/nix-support"
      passed=0
      check() { # WHAT EXPECTED ACTUAL
        if [ "$2" = "$3" ]; then passed=$((passed + 1)); echo "ok: $1"; else echo "wrong: $1: $3"; exit 1; fi
      }
      long=$(head -c 100 /dev/zero | tr '\0' x)
      {
        check "greets the world" "Hello, world!" "$("$greet/bin/greet")"
        check "greets somebody" "Hello, Nix!" "$("$greet/bin/greet" Nix)"
        check "refuses a long name" 1 "$("$greet/bin/greet" "$long" 2>/dev/null || echo $?)"
      } > "$out/report.txt"
      cat "$out/report.txt"
      echo "report tests $out/report.txt" > "$out/nix-support/hydra-build-products"
      {
        echo "tests.passed $passed"
        echo "greet.size $(stat -c %s "$greet/bin/greet") bytes"
      } > "$out/nix-support/hydra-metrics"
    '';
  };

  tarball = job {
    name = "greet-tarball-${version}";
    inherit src;
    meta.description = "The source as a release";
    script = ''
      mkdir -p "$out/tarballs" "$out/nix-support"
      cp -r "$src" greet-${version}
      tar --sort=name --mtime=@1 --owner=0 --group=0 -c greet-${version} | gzip -n > "$out/tarballs/greet-${version}.tar.gz"
      echo "file source-dist $out/tarballs/greet-${version}.tar.gz" > "$out/nix-support/hydra-build-products"
      echo "greet-${version}" > "$out/nix-support/hydra-release-name"
    '';
  };

  manual = job {
    name = "greet-manual-${version}";
    inherit src;
    meta.description = "A document";
    script = ''
      mkdir -p "$out/manual" "$out/nix-support"
      {
        echo "<!DOCTYPE html><title>greet ${version}</title><h1>greet ${version}</h1>"
        while read -r line; do echo "<p>$line</p>"; done < "$src/manual.txt"
      } > "$out/manual/index.html"
      echo "doc manual $out/manual index.html" > "$out/nix-support/hydra-build-products"
    '';
  };

  release = job {
    name = "greet-release-${version}";
    _hydraAggregate = true;
    constituents = [ libgreet greet tests tarball manual ];
    meta.description = "Good if all of these are";
    script = ''
      mkdir -p "$out/nix-support"
      touch "$out/nix-support/hydra-build-products"
      echo "$constituents" > "$out/constituents"
    '';
  };

  # ---- what must not succeed

  compile-error = job {
    name = "compile-error";
    feature = "demo-local";
    meta.description = "Fails: not a C program";
    script = ''
      echo 'int main(void) { return forty_two; }' > wrong.c
      gcc -o "$out" wrong.c
    '';
  };

  after-compile-error = job {
    name = "after-compile-error";
    needed = compile-error;
    meta.description = "Cannot be built: what it needs failed";
    script = ''cp "$needed" "$out"'';
  };

  too-slow = job {
    name = "too-slow";
    feature = "demo-ssh";
    meta.description = "Is stopped: it works for longer than its timeout allows";
    meta.timeout = 4;
    script = ''
      i=0
      while [ $i -lt 300 ]; do i=$((i + 1)); echo "still working: $i"; sleep 1; done
      touch "$out"
    '';
  };

  too-silent = job {
    name = "too-silent";
    feature = "demo-local";
    meta.description = "Is stopped: it says nothing for longer than allowed";
    meta.maxSilent = 4;
    script = ''
      echo "I shall be quiet now."
      sleep 300
      touch "$out"
    '';
  };

  failed-with-output = job {
    name = "failed-with-output";
    meta.description = "Fails, but leaves a report";
    script = ''
      mkdir -p "$out/nix-support"
      echo "2 of 3 tests passed" > "$out/report.txt"
      echo "report tests $out/report.txt" > "$out/nix-support/hydra-build-products"
      touch "$out/nix-support/failed"
    '';
  };
}
