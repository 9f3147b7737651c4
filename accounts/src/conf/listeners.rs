//! The unix sockets of `service doveadm`: `unix_listener doveadm-server { mode = 0600 }`.

use std::path::{Path, PathBuf};

use super::error::ConfError;
use super::settings::{Settings, invalid};
use super::tree::Section;
use crate::user::system_id;

/// A unix socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    pub path: PathBuf,
    pub mode: u32,
    /// Its owner and group, where they are not the program's.
    pub user: Option<u32>,
    pub group: Option<u32>,
}

impl Settings {
    /// The unix sockets that the configuration names; none unless it does. Mode 0 turns one off, as in Dovecot.
    pub fn doveadm_sockets(&self) -> Result<Vec<UnixSocket>, ConfError> {
        let base = self.text("base_dir").unwrap_or_else(|| "/run/dovecot".to_owned());
        let services = self.root().of_kind("service").filter(|service| service.title == "doveadm");
        let sections = services.flat_map(|service| service.of_kind("unix_listener"));
        let sockets =
            sections.map(|section| socket(section, Path::new(&base))).collect::<Result<Vec<_>, _>>()?;
        Ok(sockets.into_iter().filter(|socket| socket.mode != 0).collect())
    }
}

fn socket(section: &Section, base: &Path) -> Result<UnixSocket, ConfError> {
    let set = |key: &str| section.text(key).filter(|text| !text.is_empty());
    let wrong = |key: &str, what: String| invalid(section.place.clone(), key, what);
    let mode = match set("mode") {
        Some(text) => u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| wrong("mode", format!("\"{}\" is no mode such as 0600", text.escape_debug())))?,
        None => 0o600,
    };
    let id = |key: &str, kind: &str| {
        let found = set(key).map(|text| system_id(kind, text)).transpose();
        found.map_err(|error| wrong(key, error.to_string()))
    };
    if section.title.is_empty() {
        return Err(wrong("unix_listener", "has no name".to_owned()));
    }
    let path = base.join(&section.title);
    Ok(UnixSocket { path, mode, user: id("user", "uid")?, group: id("group", "gid")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_in_the_service() {
        let sockets = |text: &str| Settings::parse(text).unwrap().doveadm_sockets();
        assert_eq!(sockets("base_dir = /run/x").unwrap(), []);
        let found = sockets(
            "base_dir = /run/x\nservice doveadm {\n unix_listener doveadm-server {\n mode = 0660\n group = root\n }\n unix_listener /tmp/y {\n }\n \
             unix_listener off {\n mode = 0\n }\n inet_listener {\n port = 1\n }\n}\nservice auth {\n unix_listener z {\n }\n}",
        );
        let socket = |path: &str, mode, group| UnixSocket { path: path.into(), mode, user: None, group };
        assert_eq!(
            found.unwrap(),
            [socket("/run/x/doveadm-server", 0o660, Some(0)), socket("/tmp/y", 0o600, None)]
        );
        for bad in ["mode = 999", "mode = 1777", "user = no-such-user"] {
            let text = format!("service doveadm {{\n unix_listener x {{\n {bad}\n }}\n}}");
            assert_eq!(sockets(&text).unwrap_err().status(), 78, "{bad}");
        }
    }
}
