//! Whom this host trusts when a server says who it is.

use rustls::pki_types::CertificateDer;

/// The certificates of this host's authorities; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
///
/// # Errors
/// When there are none, in words for an operator.
pub fn host_authorities() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}"));
        return Err(format!(
            "this host has no certificates of authorities{}; install ca-certificates",
            why.unwrap_or_default()
        ));
    }
    Ok(found.certs)
}
