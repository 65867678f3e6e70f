//! Certificates: an authority of the test's own, made with openssl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::ServerConfig;

use super::process::output_of;
use super::{RunAs, TestDir};

pub struct Authority {
    dir: TestDir,
    name: String,
}

/// A certificate and its key, PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// For a server in this process.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate).expect("a file");
        let certificates = certificates
            .map(|one| one.expect("a certificate"))
            .collect();
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(certificates, key);
        Arc::new(config.expect("a certificate and its key"))
    }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let dir = TestDir::new(RunAs::Me);
        request(&dir, name, "ca")
            .args(["-x509", "-days", "2"])
            .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
            .run(&dir.join("ca.pem"));
        Authority {
            dir,
            name: name.to_owned(),
        }
    }

    /// Its own certificate, for those who shall trust it.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for a server (`alt_names` such as `IP:127.0.0.1,DNS:localhost`) or a client (none), called `name`.
    pub fn issue(&self, name: &str, alt_names: &str) -> Certificate {
        let certificate = self.dir.join(format!("{name}.pem"));
        let demand = self.dir.join(format!("{name}.csr"));
        request(&self.dir, name, name).run(&demand);
        let mut extensions = "basicConstraints=CA:FALSE\n".to_owned();
        if !alt_names.is_empty() {
            extensions.push_str(&format!("subjectAltName={alt_names}\n"));
        }
        let extensions = self
            .dir
            .file(&format!("{name}.ext"), &extensions, RunAs::Me);
        let mut sign = Command::new("openssl");
        sign.args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"])
            .arg(&demand)
            .arg("-CA")
            .arg(self.certificate())
            .arg("-CAkey")
            .arg(self.dir.join("ca.key"))
            .arg("-extfile")
            .arg(extensions)
            .arg("-out")
            .arg(&certificate);
        output_of(&mut sign);
        Certificate {
            certificate,
            key: self.dir.join(format!("{name}.key")),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

struct Request(Command);

/// A new key `KEYNAME.key` and what asks for, or is, a certificate for it.
fn request(dir: &TestDir, common_name: &str, key_name: &str) -> Request {
    let mut command = Command::new("openssl");
    command
        .args([
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-subj", &format!("/CN={common_name}"), "-keyout"])
        .arg(dir.join(format!("{key_name}.key")));
    Request(command)
}

impl Request {
    fn args(mut self, args: impl IntoIterator<Item = &'static str>) -> Request {
        self.0.args(args);
        self
    }

    fn run(mut self, out: &Path) {
        output_of(self.0.arg("-out").arg(out));
    }
}
