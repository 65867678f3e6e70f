//! TLS to PostgreSQL, configured as libpq has it: `sslmode`, `sslrootcert`, `sslcert`, `sslkey` and their relatives.
//!
//! Knows files of certificates and what each mode verifies; does not know when a connection is made. Files are read anew
//! for each connection, so a renewed certificate needs no restart.
//!
//! As in libpq, a file of authorities that is there (`~/.postgresql/root.crt` unless `sslrootcert` says otherwise) makes
//! also `require` and the weaker modes verify the chain. Not as in libpq: only the certificate's subjectAltName counts,
//! never its common name; revocation lists, passwords of keys and `sslnegotiation=direct` are refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::config::{ChannelBinding, SslMode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::{ring, verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::DbError;
use crate::sys::authorities::host_authorities;

/// The keys of a conninfo string that are understood here, each with its PG* variable.
pub const KEYS: &[(&str, &str)] = &[
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslsni", "PGSSLSNI"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslpassword", ""),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
];

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    Disable,
    /// Without, and with TLS if the server insists.
    Allow,
    /// With, and without TLS if the server or that fails.
    Prefer,
    /// With TLS; whose server it is, is only verified if there is a file of authorities.
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    const ALL: [(&'static str, Mode); 6] = [
        ("disable", Mode::Disable),
        ("allow", Mode::Allow),
        ("prefer", Mode::Prefer),
        ("require", Mode::Require),
        ("verify-ca", Mode::VerifyCa),
        ("verify-full", Mode::VerifyFull),
    ];

    fn name(self) -> &'static str {
        let found = Mode::ALL.iter().find(|(_, mode)| *mode == self);
        found.map_or("", |(name, _)| name)
    }
}

/// Whom we believe when they say who the server is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Roots {
    /// The authorities of this host, `sslrootcert=system`.
    System,
    /// A file; if it was named by nobody it need not be there.
    File { path: PathBuf, named: bool },
    /// There is no home folder to look in.
    Nowhere,
}

/// Everything about TLS that a target says.
#[derive(Clone, Debug)]
pub struct Tls {
    mode: Mode,
    origin: String,
    roots: Roots,
    /// Our own certificate and its key.
    own: Option<(PathBuf, PathBuf)>,
    sni: bool,
    min_12: bool,
    max_13: bool,
    channel_binding: ChannelBinding,
}

impl Tls {
    /// For a socket folder, where libpq does not use TLS either.
    pub fn none(origin: &str) -> Tls {
        Tls {
            mode: Mode::Disable,
            origin: origin.to_owned(),
            roots: Roots::Nowhere,
            own: None,
            sni: true,
            min_12: true,
            max_13: true,
            channel_binding: ChannelBinding::Prefer,
        }
    }

    /// `find` gives a parameter and where it is set; `home` is the user's folder.
    ///
    /// # Errors
    /// For a value or a combination that cannot be.
    pub fn from_parameters(
        find: &dyn Fn(&str) -> Option<(String, String)>,
        home: Option<&Path>,
    ) -> Result<Tls, DbError> {
        let wrong = |origin: &str, reason: String| DbError::BadTarget {
            origin: origin.to_owned(),
            reason,
        };
        for (key, instead) in [
            ("sslcrl", "revocation lists are not read"),
            ("sslcrldir", "revocation lists are not read"),
            (
                "sslpassword",
                "give sslkey a key without a password, readable by this user alone",
            ),
        ] {
            if let Some((_, origin)) = find(key) {
                return Err(wrong(
                    &origin,
                    format!("`{key}` is not supported: {instead}"),
                ));
            }
        }
        if let Some((value, origin)) = find("sslnegotiation") {
            if value != "postgres" {
                let reason = format!("sslnegotiation={value}: only `postgres` is supported");
                return Err(wrong(&origin, reason));
            }
        }
        let mut tls = Tls {
            mode: Mode::Prefer,
            ..Tls::none("default")
        };
        let mut named_mode = false;
        if let Some((value, origin)) = find("sslmode") {
            let found = Mode::ALL.iter().find(|(name, _)| *name == value);
            let Some((_, mode)) = found else {
                let reason = format!(
                    "sslmode={value}: expected disable, allow, prefer, require, verify-ca or verify-full"
                );
                return Err(wrong(&origin, reason));
            };
            (tls.mode, tls.origin, named_mode) = (*mode, origin, true);
        }
        let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name));
        tls.roots = match (find("sslrootcert"), in_home("root.crt")) {
            (Some((value, origin)), _) if value == "system" => {
                if !named_mode {
                    tls.mode = Mode::VerifyFull;
                    tls.origin = origin;
                } else if tls.mode != Mode::VerifyFull {
                    let reason = format!(
                        "sslrootcert=system trusts every authority of this host, so it needs sslmode=verify-full, not {}",
                        tls.mode.name()
                    );
                    return Err(wrong(&origin, reason));
                }
                Roots::System
            }
            (Some((path, _)), _) => Roots::File {
                path: PathBuf::from(path),
                named: true,
            },
            (None, Some(path)) => Roots::File { path, named: false },
            (None, None) => Roots::Nowhere,
        };
        let own = |key: &str, name: &str| {
            find(key)
                .map(|(path, origin)| (PathBuf::from(path), Some(origin)))
                .or_else(|| {
                    in_home(name)
                        .filter(|path| path.exists())
                        .map(|path| (path, None))
                })
        };
        tls.own = match (
            own("sslcert", "postgresql.crt"),
            own("sslkey", "postgresql.key"),
        ) {
            (Some((certificate, _)), Some((key, _))) => Some((certificate, key)),
            (Some((certificate, Some(origin))), None) => {
                let reason = format!("there is no key to {}; set sslkey", certificate.display());
                return Err(wrong(&origin, reason));
            }
            _ => None,
        };
        tls.sni = find("sslsni").is_none_or(|(value, _)| value != "0");
        for (key, which) in [
            ("ssl_min_protocol_version", true),
            ("ssl_max_protocol_version", false),
        ] {
            let Some((value, origin)) = find(key) else {
                continue;
            };
            match (&*value, which) {
                ("TLSv1" | "TLSv1.1" | "TLSv1.2", true) | ("TLSv1.3", false) => {}
                ("TLSv1.3", true) => tls.min_12 = false,
                ("TLSv1.2", false) => tls.max_13 = false,
                _ => {
                    let reason = format!("{key}={value}: only TLSv1.2 and TLSv1.3 are supported");
                    return Err(wrong(&origin, reason));
                }
            }
        }
        if !tls.min_12 && !tls.max_13 {
            let reason = "is above ssl_max_protocol_version".to_owned();
            return Err(wrong("ssl_min_protocol_version", reason));
        }
        if let Some((value, origin)) = find("channel_binding") {
            tls.channel_binding = match &*value {
                "disable" => ChannelBinding::Disable,
                "prefer" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => {
                    let reason =
                        format!("channel_binding={value}: expected disable, prefer or require");
                    return Err(wrong(&origin, reason));
                }
            };
        }
        if tls.mode >= Mode::VerifyCa {
            // Said at the start rather than at the first connection.
            tls.root_file()
                .map_err(|reason| wrong(&tls.origin, reason))?;
        }
        Ok(tls)
    }

    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    /// What to try, in this order, with a server that is not reached through a socket folder.
    pub fn attempts(&self) -> &'static [SslMode] {
        match self.mode {
            Mode::Disable => &[SslMode::Disable],
            Mode::Allow => &[SslMode::Disable, SslMode::Require],
            Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
        }
    }

    /// The mode and the files, and where the mode is set; for `hydrad check`.
    pub fn describe(&self) -> (String, &str) {
        let mut text = self.mode.name().to_owned();
        if self.mode == Mode::Disable {
            return (text, &self.origin);
        }
        match &self.roots {
            Roots::System => text.push_str(", authorities of this host"),
            Roots::File { path, named } if *named || path.exists() => {
                text.push_str(&format!(", authorities in {}", path.display()));
            }
            _ => text.push_str(", the server is not verified"),
        }
        if let Some((certificate, _)) = &self.own {
            text.push_str(&format!(", own certificate {}", certificate.display()));
        }
        (text, &self.origin)
    }

    /// What makes an encrypted connection.
    ///
    /// # Errors
    /// When a file cannot be used, in words.
    pub fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = match self.root_file()? {
            None => None,
            Some(file) => {
                let roots = match file {
                    None => host_authorities()?,
                    Some(path) => certificates(path)?,
                };
                Some(Chain::new(roots, &provider)?)
            }
        };
        let mut versions: Vec<&'static SupportedProtocolVersion> = Vec::new();
        if self.max_13 {
            versions.push(&rustls::version::TLS13);
        }
        if self.min_12 {
            versions.push(&rustls::version::TLS12);
        }
        let verifier = Verifier {
            chain,
            name: self.mode == Mode::VerifyFull,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| format!("TLS versions: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| {
                    format!(
                        "cannot use {} with the key {}: {error}",
                        certificate.display(),
                        key.display()
                    )
                })?,
        };
        config.enable_sni = self.sni;
        Ok(MakeRustlsConnect::new(config))
    }

    /// Where the authorities are: a file, this host's (`Some(None)`), or nobody verifies (`None`).
    fn root_file(&self) -> Result<Option<Option<&Path>>, String> {
        match &self.roots {
            Roots::System => Ok(Some(None)),
            Roots::File { path, named } if *named || path.exists() => Ok(Some(Some(path))),
            _ if self.mode < Mode::VerifyCa => Ok(None),
            Roots::File { path, .. } => Err(format!(
                "sslmode={} needs a file with the certificate of the server's authority, and {} does not exist; name it \
                 in sslrootcert, or write sslrootcert=system for the authorities of this host",
                self.mode.name(),
                path.display()
            )),
            Roots::Nowhere => Err(format!(
                "sslmode={} needs a file with the certificate of the server's authority; name it in sslrootcert, or write \
                 sslrootcert=system for the authorities of this host",
                self.mode.name()
            )),
        }
    }

    /// What to try after an error of TLS's, `words`; starts with `; ` or is empty.
    pub fn hint(&self, words: &str) -> String {
        let roots = match &self.roots {
            Roots::File { path, .. } => path.display().to_string(),
            _ => "this host's authorities".to_owned(),
        };
        if words.contains("does not support TLS") {
            return format!(
                "; sslmode={} ({}) demands it: switch ssl on in postgresql.conf",
                self.mode.name(),
                self.origin
            );
        }
        if words.contains("UnknownIssuer") || words.contains("BadSignature") {
            return format!(
                "; the server's certificate was not issued by an authority in {roots} (sslrootcert)"
            );
        }
        if words.contains("not valid for") || words.contains("NotValidForName") {
            return "; only names in the certificate's subjectAltName count: use one of those as the host, have a \
                    certificate issued for this one, or use sslmode=verify-ca"
                .to_owned();
        }
        if words.contains("expired") || words.contains("Expired") {
            return "; renew the server's certificate".to_owned();
        }
        if words.contains("received fatal alert") {
            return match &self.own {
                None => {
                    "; does the server want a certificate of ours (sslcert, sslkey)?".to_owned()
                }
                Some((certificate, _)) => format!(
                    "; the server does not accept {} (sslcert)",
                    certificate.display()
                ),
            };
        }
        String::new()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let cannot = |why: String| format!("cannot read the certificates in {}: {why}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| cannot(error.to_string()))?
        .collect();
    match found {
        Ok(found) if found.is_empty() => Err(cannot("there are none".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(cannot(error.to_string())),
    }
}

/// A key that others may read is not used, as in libpq: 0600, or 0640 if it is root's.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let cannot = |why: String| format!("cannot use the key {}: {why}", path.display());
    let file = fs::metadata(path).map_err(|error| cannot(error.to_string()))?;
    let allowed = if file.uid() == 0 { 0o640 } else { 0o600 };
    if file.mode() & 0o777 & !allowed & !0o100 != 0 {
        return Err(cannot(format!(
            "others may read it; run `chmod 600 {}`",
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| cannot(format!("{error} (a key with a password is not supported)")))
}

/// Verifies that a certificate leads to one of ours.
#[derive(Debug)]
struct Chain {
    webpki: Arc<WebPkiServerVerifier>,
    /// A server's own certificate among the authorities is believed as it is, as OpenSSL does; rustls would ask for an
    /// authority above it.
    roots: Vec<CertificateDer<'static>>,
}

impl Chain {
    fn new(
        roots: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Chain, String> {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots.iter().cloned());
        if added == 0 {
            return Err("none of the authorities' certificates can be read".to_owned());
        }
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()
            .map_err(|error| format!("the authorities' certificates: {error}"))?;
        Ok(Chain { webpki, roots })
    }
}

/// What a mode demands of the server's certificate.
#[derive(Debug)]
struct Verifier {
    /// `None`: everybody is believed.
    chain: Option<Chain>,
    /// Whether it must be for the host that we connect to.
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if chain.roots.iter().any(|root| root == own) {
            if self.name {
                verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain
            .webpki
            .verify_server_cert(own, between, name, ocsp, now)
        {
            // The name is looked at last, so the chain is good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
