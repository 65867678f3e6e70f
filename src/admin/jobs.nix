# Turns a Nix file into a list of jobs: derivations found in (nested) attribute sets, named by their attribute path.
{ file, attrs }:
let
  inherit (builtins) attrNames concatLists isAttrs isFunction isList isString map tryEval foldl' getAttr hasAttr
    listToAttrs toString;
  called = x: if isFunction x then x { } else x;
  root = called (import file);
  split = s: builtins.filter isString (builtins.split "\\." s);
  pick = path: foldl' (set: name:
    if isAttrs set && hasAttr name set then getAttr name set else throw "attribute '${path}' is not there") root (split path);
  join = prefix: name: if prefix == "" then name else "${prefix}.${name}";
  text = x: if isString x then x else if x == null then null else toString x;
  # A content-addressed output has a placeholder instead of a path.
  known = path: if builtins.substring 0 (builtins.stringLength builtins.storeDir) path == builtins.storeDir then path else null;
  number = default: x: if builtins.isInt x then x else default;
  job = name: drv:
    let
      attempt = tryEval drv.drvPath;
      meta = drv.meta or { };
      outputs = drv.outputs or [ "out" ];
    in
    if !attempt.success then [ { inherit name; error = "its derivation cannot be evaluated"; } ]
    else [{
      inherit name;
      drv = builtins.unsafeDiscardStringContext attempt.value;
      nixName = drv.name;
      system = drv.system;
      outputs = listToAttrs (map (o: { name = o; value = known (builtins.unsafeDiscardStringContext drv.${o}.outPath); }) outputs);
      description = text (meta.description or null);
      homepage = text (meta.homepage or null);
      priority = number 100 (meta.schedulingPriority or null);
      timeout = number null (meta.timeout or null);
      maxSilent = number null (meta.maxSilent or null);
      isChannel = meta.isHydraChannel or false;
      constituents =
        if drv._hydraAggregate or false
        then map (c: if isString c then { job = builtins.unsafeDiscardStringContext c; }
                     else { drv = builtins.unsafeDiscardStringContext c.drvPath; })
          (let c = drv.constituents or [ ]; in if isList c then c else builtins.filter (s: isString s && s != "") (builtins.split "[[:space:]]+" c))
        else null;
    }];
  walk = depth: name: x:
    let attempt = tryEval x; in
    if !attempt.success then [ { inherit name; error = "it cannot be evaluated"; } ]
    else if !isAttrs attempt.value then [ ]
    else if (attempt.value.type or "") == "derivation" then job name attempt.value
    else if depth > 10 then [ { inherit name; error = "nested too deeply"; } ]
    else concatLists (map (n: walk (depth + 1) (join name n) attempt.value.${n}) (attrNames attempt.value));
in
# An attribute that was asked for is evaluated outside tryEval: what is wrong with it is told in Nix's own words.
if attrs == [ ] then walk 0 "" root
else concatLists (map (path: let x = pick path; in builtins.seq x (walk 0 path x)) attrs)
