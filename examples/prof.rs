use hydrad::plan::event::Event;
use hydrad::plan::simulation::*;
use std::collections::BTreeMap;
use std::time::*;
fn main() {
    let steps: u32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut w = World::new(Config {
        seed: 1,
        steps,
        machines: 1000,
        slots: 8,
        faults: 0.0,
        kills: Kills::Never,
        audit: false,
        check_every: 0,
    });
    let mut t: BTreeMap<String, (u64, u128)> = BTreeMap::new();
    let mut f = |p: &mut hydrad::plan::Plan, n, e: Event, a: &mut Vec<_>| {
        let k = match &e {
            Event::RunPhase { phase, .. } => format!("phase {}", phase.text()),
            Event::Facts { answers } => format!("facts {}", answers.len() / 64),
            e => format!("{e:?}")
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap()
                .to_string(),
        };
        let b = Instant::now();
        p.turn(n, e, a);
        let d = b.elapsed().as_nanos();
        let x = t.entry(k).or_default();
        x.0 += 1;
        x.1 += d;
    };
    while w.advance(5000, &mut f) {}
    for (k, (n, d)) in &t {
        println!(
            "{k:20} {n:8} {:8.2} us/event {:6.2} us/step",
            *d as f64 / 1000.0 / *n as f64,
            *d as f64 / 1000.0 / steps as f64
        );
    }
}
