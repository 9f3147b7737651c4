//! The system user that a mail user's work is done as: uid, gid and further groups, and whether the settings permit them.
//!
//! Only root can become somebody else. Becoming it is the work of the process that is started for it.

use std::collections::BTreeSet;
use std::ffi::CString;

use nix::unistd::{Gid, geteuid, getgrouplist};

use crate::conf::Settings;
use crate::user::{User, UserError, system_id};

/// As whom a user's mail is worked on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Further groups, ascending, each once.
    pub groups: Vec<u32>,
}

impl Identity {
    /// As whom to work for a user that the userdb, or a name alone, stands for.
    ///
    /// `None`: as whoever runs this program. So it is unless that is root; for root only where `first_valid_uid` is 0, and the uid is 0 or
    /// nobody names one (neither the userdb nor the setting `mail_uid`). Else that is refused, as in Dovecot.
    pub fn of(settings: &Settings, user: &User) -> Result<Option<Identity>, UserError> {
        if geteuid().is_root() { Identity::for_root(settings, user) } else { Ok(None) }
    }

    fn for_root(settings: &Settings, user: &User) -> Result<Option<Identity>, UserError> {
        let Some((uid, uid_from)) = given(settings, user.uid, "uid", "mail_uid")? else {
            permit_root(settings)?;
            return Ok(None);
        };
        let chroot = user.extra.get("chroot").cloned().or_else(|| settings.text("mail_chroot"));
        // Dovecot's other way to write it.
        let marked = user.home.as_ref().is_some_and(|home| home.to_string_lossy().contains("/./"));
        if marked || chroot.is_some_and(|path| !path.is_empty()) {
            return Err(UserError::Unsupported("work in a chroot is not supported by dsync".to_owned()));
        }
        let (first, last) =
            (number(settings, "first_valid_uid", 500)?, number(settings, "last_valid_uid", 0)?);
        check("UID", uid, first, last, uid_from)?;
        let Some((gid, gid_from)) = given(settings, user.gid, "gid", "mail_gid")? else {
            let what = format!(
                "the user has uid {uid} and no gid: the userdb or the setting mail_gid has to name one"
            );
            return Err(UserError::Invalid(what));
        };
        let (first, last) = (number(settings, "first_valid_gid", 1)?, number(settings, "last_valid_gid", 0)?);
        check("GID", gid, first, last, gid_from)?;
        if uid == 0 {
            return Ok(None);
        }
        let mut groups = BTreeSet::new();
        if let Some(system) = user.extra.get("system_groups_user") {
            let name = CString::new(system.as_str())
                .map_err(|_| UserError::Invalid("system_groups_user has a zero byte".to_owned()))?;
            let found = getgrouplist(&name, Gid::from_raw(gid)).map_err(|errno| UserError::Temporary {
                what: "system_groups_user".to_owned(),
                source: errno.into(),
            })?;
            // The system may have put them in a group that mail is not to be read by.
            let valid = found.into_iter().map(Gid::as_raw).filter(|&group| within(group, first, last));
            groups.extend(valid);
        }
        let shared = settings.text("mail_access_groups").unwrap_or_default();
        for group in shared.split([',', ' ']).filter(|group| !group.is_empty()) {
            groups.insert(system_id("gid", group)?);
        }
        groups.remove(&gid);
        Ok(Some(Identity { uid, gid, groups: groups.into_iter().collect() }))
    }
}

/// Refuses to work as root, unless `first_valid_uid = 0` permits it: for whoever others tell where to write.
pub fn refuse_root(settings: &Settings) -> Result<(), UserError> {
    if geteuid().is_root() { permit_root(settings) } else { Ok(()) }
}

fn permit_root(settings: &Settings) -> Result<(), UserError> {
    if number(settings, "first_valid_uid", 500)? == 0 {
        return Ok(());
    }
    let what = "root works for no other user: the userdb or the setting mail_uid has to name a uid (first_valid_uid = 0 permits root)";
    Err(UserError::Refused(what.to_owned()))
}

/// The id, and who named it: the userdb, else the setting.
fn given(
    settings: &Settings,
    found: Option<u32>,
    kind: &str,
    setting: &'static str,
) -> Result<Option<(u32, &'static str)>, UserError> {
    if let Some(id) = found {
        return Ok(Some((id, "the userdb")));
    }
    let Some(text) = settings.text(setting) else { return Ok(None) };
    Ok(Some((system_id(kind, &text)?, setting)))
}

fn number(settings: &Settings, setting: &str, default: u32) -> Result<u32, UserError> {
    Ok(settings.parsed(setting, "a number", |text| text.parse().ok())?.unwrap_or(default))
}

/// `last` 0: no limit.
fn within(id: u32, first: u32, last: u32) -> bool {
    id >= first && (last == 0 || id <= last)
}

fn check(kind: &str, id: u32, first: u32, last: u32, from: &str) -> Result<(), UserError> {
    if within(id, first, last) {
        return Ok(());
    }
    let (setting, place) = (kind.to_lowercase(), if id < first { "first" } else { "last" });
    let what = format!("{kind} {id} (from {from}) is not permitted: see the setting {place}_valid_{setting}");
    Err(UserError::Refused(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(settings: &str, fields: &str) -> Result<Option<Identity>, UserError> {
        let mut user = User { name: "alice".to_owned(), ..User::default() };
        let fields: Vec<_> = fields
            .split_whitespace()
            .map(|field| field.split_once('=').expect("a field"))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        user.set_fields(&fields)?;
        Identity::for_root(&Settings::parse(settings)?, &user)
    }

    #[test]
    fn the_userdb_and_then_the_settings_say_who() {
        let some = |uid, gid, groups: &[u32]| Some(Identity { uid, gid, groups: groups.to_vec() });
        for (settings, fields, expected) in [
            ("", "uid=2001 gid=2002", some(2001, 2002, &[])),
            ("mail_uid = 3001\nmail_gid = 3002", "", some(3001, 3002, &[])),
            ("mail_uid = 3001\nmail_gid = 3002", "uid=2001", some(2001, 3002, &[])),
            ("mail_access_groups = 7, 2002,5 7", "uid=2001 gid=2002", some(2001, 2002, &[5, 7])),
            ("", "uid=2001 gid=2002 system_groups_user=no-such-user", some(2001, 2002, &[])),
            ("first_valid_uid = 0", "", None),
            ("first_valid_uid = 0", "gid=2002", None),
            ("first_valid_uid = 0\nfirst_valid_gid = 0", "uid=0 gid=0", None),
        ] {
            assert_eq!(identity(settings, fields).unwrap(), expected, "{settings:?} {fields:?}");
        }
    }

    #[test]
    fn what_is_not_permitted_is_refused() {
        for (settings, fields, status, says) in [
            (
                "",
                "uid=0 gid=0",
                77,
                "UID 0 (from the userdb) is not permitted: see the setting first_valid_uid",
            ),
            ("", "uid=499 gid=499", 77, "first_valid_uid"),
            ("", "", 77, "the setting mail_uid has to name a uid"),
            ("first_valid_uid = 1", "gid=2002", 77, "mail_uid"),
            ("mail_uid = root\nmail_gid = 5", "", 77, "UID 0 (from mail_uid)"),
            ("last_valid_uid = 2000", "uid=2001 gid=9", 77, "last_valid_uid"),
            ("", "uid=2001 gid=0", 77, "first_valid_gid"),
            ("last_valid_gid = 3", "uid=2001 gid=4", 77, "last_valid_gid"),
            ("", "uid=2001", 78, "no gid"),
            ("", "uid=2001 gid=2001 chroot=/srv", 78, "chroot"),
            ("", "uid=2001 gid=2001 home=/srv/./alice", 78, "chroot"),
            ("mail_chroot = /srv", "uid=2001 gid=2001", 78, "chroot"),
            ("first_valid_uid = some", "uid=2001 gid=2001", 78, "first_valid_uid"),
        ] {
            let error = identity(settings, fields).unwrap_err();
            assert_eq!(error.status(), status, "{settings:?} {fields:?}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
