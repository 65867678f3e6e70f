//! Counters, timings and gauges for a statsd server: one datagram each, and nobody minds if one is lost.

use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::time::Duration;

/// Where metrics go.
#[derive(Debug)]
pub struct Statsd {
    /// `None`: nowhere, since the server's name is unknown.
    socket: Option<UdpSocket>,
}

impl Statsd {
    pub fn new(host: &str, port: u16) -> Statsd {
        let socket = open(host, port);
        if let Err(error) = &socket {
            log::debug!("no metrics to statsd at {host}:{port}: {error}");
        }
        Statsd {
            socket: socket.ok(),
        }
    }

    pub fn increment(&self, name: &str) {
        self.send(&format!("{name}:1|c"));
    }

    pub fn timing(&self, name: &str, time: Duration) {
        self.send(&format!("{name}:{}|ms", time.as_millis()));
    }

    pub fn gauge(&self, name: &str, value: f64) {
        self.send(&format!("{name}:{value}|g"));
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // Usually nobody listens, which the next datagram is told of.
            let _ = socket.send(text.as_bytes());
        }
    }
}

fn open(host: &str, port: u16) -> io::Result<UdpSocket> {
    // The first address, as Hydra's programs do: nothing tells which of several is listened to.
    let address = (host, port).to_socket_addrs()?.next();
    let address = address.ok_or(io::ErrorKind::NotFound)?;
    let any = match address.is_ipv4() {
        true => "0.0.0.0:0",
        false => "[::]:0",
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_a_datagram() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = server.local_addr().expect("an address").port();
        let statsd = Statsd::new("127.0.0.1", port);
        statsd.increment("a.evals");
        statsd.timing("a.time", Duration::from_millis(1500));
        statsd.gauge("a.size", 2.5);
        let mut buffer = [0; 64];
        for expected in ["a.evals:1|c", "a.time:1500|ms", "a.size:2.5|g"] {
            let length = server.recv(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        Statsd::new("no.such.host.invalid", 1).increment("a");
    }
}
