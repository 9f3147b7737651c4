//! Settings of TLS.

use super::super::error::ConfError;
use super::super::tree::{Value, parse_bool};
use super::{Settings, invalid, is_empty, read_file};

/// Whether clients may, or must, use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ssl {
    /// TLS is not offered.
    No,
    /// TLS is offered.
    Yes,
    /// Nothing happens without TLS.
    Required,
}

impl Settings {
    /// Whether TLS is offered: `Yes` by default if there is a certificate, else `No`.
    pub fn ssl(&self) -> Result<Ssl, ConfError> {
        let read = |text: &str| match parse_bool(text) {
            Some(true) => Some(Ssl::Yes),
            Some(false) => Some(Ssl::No),
            None => text.eq_ignore_ascii_case("required").then_some(Ssl::Required),
        };
        let certified = || {
            let mut names = ["ssl_cert", "ssl_server_cert_file"].iter();
            names.any(|name| self.entry(name).is_some_and(|entry| !is_empty(entry)))
        };
        let default = || if certified() { Ssl::Yes } else { Ssl::No };
        Ok(self.parsed("ssl", "no, yes or required", read)?.unwrap_or_else(default))
    }

    /// The server's certificate chain, PEM.
    pub fn ssl_cert(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_server_cert_file", "ssl_cert"])
    }

    /// The server's private key, PEM.
    pub fn ssl_key(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_server_key_file", "ssl_key"])
    }

    /// The authorities that the client accepts servers' certificates from, PEM.
    pub fn ssl_client_ca(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_client_ca_file"])
    }

    /// The client's certificate chain, PEM.
    pub fn ssl_client_cert(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_client_cert_file", "ssl_client_cert"])
    }

    /// The client's private key, PEM.
    pub fn ssl_client_key(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_client_key_file", "ssl_client_key"])
    }

    /// The authorities that the server accepts clients' certificates from, PEM.
    pub fn ssl_ca(&self) -> Result<Option<Vec<u8>>, ConfError> {
        self.pem(&["ssl_server_ca_file", "ssl_ca"])
    }

    /// Reads PEM from the first of the settings that is set; `.._file` ones are paths with or without `<`.
    fn pem(&self, settings: &[&str]) -> Result<Option<Vec<u8>>, ConfError> {
        let set = settings.iter().filter_map(|setting| self.entry(setting)).find(|entry| !is_empty(entry));
        let Some(entry) = set else { return Ok(None) };
        match &entry.value {
            Value::File(path) => read_file(entry, path).map(Some),
            Value::Text(text) if text.contains("-----BEGIN ") => Ok(Some(text.clone().into_bytes())),
            Value::Text(path) if entry.key.ends_with("_file") => read_file(entry, path).map(Some),
            // The text is not quoted: it may be a key.
            Value::Text(_) => Err(invalid(
                entry.place.clone(),
                &entry.key,
                "neither PEM nor \"<\" and the name of a file".to_owned(),
            )),
        }
    }

    /// Whether clients must show a certificate.
    pub fn ssl_verify_client_cert(&self) -> Result<bool, ConfError> {
        let modern = self.yes("ssl_server_request_client_cert")?;
        Ok(self.yes("ssl_verify_client_cert")?.or(modern).unwrap_or(false))
    }
}
