use clap::Parser;
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: hydrad::admin::simulate::SimulateArgs,
}
fn main() -> anyhow::Result<std::process::ExitCode> {
    hydrad::admin::simulate::run(&Cli::parse().args)
}
