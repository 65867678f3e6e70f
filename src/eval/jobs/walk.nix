# What an evaluating process is told first: how to walk a job set and what to say of each job. The process is `nix repl`, so
# each binding goes to it as one line (protocol.rs joins the lines; comments are whole lines), and may only use those above it.
# Given before these: `top` (the job set, a function perhaps), `arguments` (for functions on the way), `say` (prints a line that
# only we can have written).

# Whether the XML of a function has this in it. That is the only way to tell `x: ...` from `{ ... }: ...` in the language.
has = text: part: builtins.length (builtins.split part text) > 1;

# As Nix's own programs call functions on the way to an attribute: those with named arguments, with what there is.
call = let call = v: if builtins.isAttrs v && v ? __functor then call (v.__functor v) else if !builtins.isFunction v then v else
  let xml = builtins.toXML v; in if !(has xml "<attrspat") then v else
  let wanted = builtins.functionArgs v;
      missing = builtins.filter (name: !wanted.${name} && !(arguments ? ${name})) (builtins.attrNames wanted);
  in if missing != [ ] then throw "cannot evaluate a function that has an argument without a value ('${builtins.head missing}')"
  else v (if has xml "ellipsis=\"1\"" then arguments else builtins.intersectAttrs wanted arguments); in call;

# An attribute with all that is below it, each evaluated when it is first asked for. Children are known by number: names may
# hold anything.
node = let node = v: let value = call v; in {
  inherit value;
  below = map (name: node value.${name}) (builtins.attrNames value); }; in node;

root = node top;

at = path: builtins.foldl' (n: i: builtins.elemAt n.below i) root path;

plain = builtins.unsafeDiscardStringContext;

# Whether meta may hold this: no functions, no derivations.
fits = let fits = v: let t = builtins.typeOf v; in t == "string" || t == "int" || t == "bool" || t == "float"
  || t == "list" && builtins.all fits v
  || t == "set" && !(v ? outPath) && builtins.all fits (builtins.attrValues v); in fits;

# All strings in it; of sets this attribute.
texts = sub: let go = v: if builtins.isString v then [ (plain v) ]
  else if builtins.isList v then builtins.concatMap go v
  else if !(builtins.isAttrs v && v ? ${sub}) then [ ]
  else if builtins.isString v.${sub} then [ (plain v.${sub}) ] else throw "value is ${builtins.typeOf v.${sub}} while a string was expected in '${sub}'";
  in v: if builtins.isString v then plain v else if fits v then builtins.concatStringsSep ", " (go v) else "";

text = v: if builtins.isString v then plain v else "";

scalar = v: if builtins.isString v then plain v else if builtins.isInt v || builtins.isBool v then v else null;

# What is wanted of meta, and as what.
meta = { description = text; homepage = text; license = texts "shortName"; maintainers = texts "email"; schedulingPriority = scalar;
  timeout = scalar; maxSilent = scalar; isHydraChannel = scalar; isChannel = scalar; };

# Of an output whose path is known only after the build Nix has something else in its place.
known = path: if builtins.substring 0 (builtins.stringLength builtins.storeDir) path == builtins.storeDir then path else null;

output = v: name: if v ? ${name} && v.${name} ? outPath then [ { inherit name; value = known (plain "${v.${name}.outPath}"); } ] else [ ];

outputs = v: if v ? outputs then builtins.listToAttrs (builtins.concatMap (output v) v.outputs) else { out = known (plain "${v.outPath}"); };

# The derivations that a list of constituents refers to, and the strings in it.
aggregate = v: if !(v._hydraAggregate or false) then { } else if !(v ? constituents)
  then throw "derivation must have a 'constituents' attribute" else
  let context = builtins.getContext (toString v.constituents); in {
  constituents = builtins.filter (drv: context.${drv} ? outputs) (builtins.attrNames context);
  named = map (s: if builtins.hasContext s then throw "the string '${plain s}' is not allowed to refer to a store path" else s) (builtins.filter builtins.isString v.constituents);
  glob = v._hydraGlobConstituents or false; };

job = v: {
  name = plain v.name;
  system = if v ? system then plain v.system else throw "derivation must have a 'system' attribute";
  drv = plain v.drvPath;
  outputs = outputs v;
  meta = if v ? meta then builtins.mapAttrs (name: value: meta.${name} value) (builtins.intersectAttrs meta v.meta) else { };
  } // (if v ? _hydraAggregate then aggregate v else { });

is = v: let t = builtins.typeOf v; in
  if t == "set" then (if v ? type && v.type == "derivation" then { job = job v; } else { names = builtins.attrNames v; })
  else if t == "string" && builtins.hasContext v then { other = "context"; } else { other = t; };

# Ranges are [ path first count ]; each attribute is told as soon as it is known, in order and with its number.
go = builtins.foldl' (_: range: let below = (at (builtins.elemAt range 0)).below; in builtins.foldl'
  (_: i: say "${toString i} ${builtins.toJSON (is (builtins.elemAt below i).value)}") null
  (builtins.genList (i: builtins.elemAt range 1 + i) (builtins.elemAt range 2))) null;
