//! The `hydrad` binary.

fn main() {
    println!("hydrad {}", env!("CARGO_PKG_VERSION"));
}
