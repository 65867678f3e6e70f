//! HTTP: the server, what it speaks, and the pages' formats; and the client. What the pages are about is put together by the services.
//!
//! | file | knows |
//! |---|---|
//! | `http` | requests and answers as bytes |
//! | `server` | connections, threads, and the bounds of both |
//! | `client` | how other servers are asked: TLS, deadlines, bounds |
//! | `prometheus` | the text format of metrics |
//! | `metrics` | the names of all metrics and what each means |
//! | `status` | JSON of the shape that Hydra's web server asks for |
//!
//! The server is our own: no maintained synchronous server crate bounds all of a request's size, its time, the threads and
//! the connections, and an address that answers anybody has to. Requests are taken apart by `httparse`.

pub mod client;
pub mod http;
pub mod metrics;
pub mod prometheus;
pub mod server;
pub mod status;
