//! Fixtures of the integration tests: real parts, started privately and taken away again.
//!
//! A PostgreSQL cluster ([`Pg`]), Nix stores ([`NixStore`], [`SecondStore`]), a nix-daemon ([`NixDaemon`]), an sshd
//! ([`Sshd`]), stub builders ([`StubBuilders`]) and a [`Gate`] for their builds, the program itself ([`Hydrad`]) and a
//! foreign listener ([`Listener`]); and a [`Farm`] made of them.
//!
//! Rules they keep:
//! - Nothing of the machine's own PostgreSQL, Nix or sshd is touched: every part lives in a [`TestDir`] under /tmp.
//! - Every process is ended by its own pid when its guard is dropped, or by the kernel when the test process dies.
//! - Nothing waits for a time. [`eventually`] and its relatives wait for a condition and give up loudly.
//! - They work for root, who hands parts to an unprivileged user ([`RunAs::Unprivileged`]), and for anybody else.
//!
//! Environment: `HYDRAD_TEST_KEEP=1` keeps the directories; `HYDRAD_TEST_PATIENCE=SECS` (default 60) is how long a
//! condition may take; `PG_BIN` names the directory of PostgreSQL's programs.

// Each test crate compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_imports)]

mod dir;
mod far;
mod farm;
mod gate;
mod hydrad;
mod listener;
mod mail;
mod nix;
pub mod notified;
mod pg;
mod process;
mod recorder;
mod s3;
mod said;
mod site;
mod sshd;
mod stub;
mod tls;
mod unreliable;
mod user;

pub use dir::TestDir;
pub use far::FarMachine;
pub use farm::Farm;
pub use gate::Gate;
pub use hydrad::{binary, Hydrad, HydradBuilder};
pub use listener::{Event, Listener};
pub use mail::{MailServer, MailTls, Rogue, Roguery};
pub use nix::{NixDaemon, NixStore, SecondStore};
pub use pg::{Db, Pg};
pub use process::{children_of, eventually, has_program, output_of, patience, wait_gone, Running};
pub use recorder::{Answer, Recorder, Told};
pub use s3::{S3Auth, S3Server, S3User};
pub use said::{said, Said};
pub use site::{stub_jobs, system, Site};
pub use sshd::{free_port, SshConfig, Sshd};
pub use stub::StubBuilders;
pub use tls::{Authority, Certificate};
pub use unreliable::{Spoil, Unreliable};
pub use user::RunAs;
