//! Hydra's order of steps and machines (spec 4.2), written down plainly: what the index must agree with.
