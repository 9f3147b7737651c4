//! Where a database's settings stand: in 2.3 in a file of their own (`args = /etc/dovecot/dovecot-sql.conf.ext`), in 2.4 in the
//! section and the main configuration.

use std::path::Path;

use crate::{
    conf::{Section, Settings, parse_text, read_limited},
    user::UserError,
};

/// Largest such file.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The settings of one `userdb` or `passdb`.
pub(crate) struct Source<'a> {
    settings: &'a Settings,
    section: &'a Section,
    /// 2.3's file.
    file: Option<Section>,
}

impl<'a> Source<'a> {
    pub fn of(settings: &'a Settings, section: &'a Section) -> Result<Self, UserError> {
        let file = match section.text("args").map(str::trim).filter(|path| !path.is_empty()) {
            None => None,
            Some(path) => {
                let path = section.place.dir().unwrap_or(Path::new("")).join(path);
                let bytes = read_limited(&path, FILE_BYTES_MAX).map_err(|source| {
                    // Who may not read it, or mistyped it, has a configuration to mend.
                    UserError::Invalid(format!("{}: {}: {source}", section.place, path.display()))
                })?;
                Some(parse_text(&path, &String::from_utf8_lossy(&bytes))?)
            }
        };
        Ok(Self { settings, section, file })
    }

    /// Whether the settings stand in a file of their own, as in 2.3.
    pub fn is_old(&self) -> bool {
        self.file.is_some()
    }

    /// The first of these settings that has a value: in 2.3's file, in the section, in the main configuration.
    pub fn get(&self, names: &[&str]) -> Option<String> {
        let file = self.file.as_ref();
        let here = |name: &&str| {
            let text = file.and_then(|file| file.text(name)).or_else(|| self.section.text(name));
            text.map(str::to_owned).or_else(|| self.settings.text(name)).filter(|text| !text.is_empty())
        };
        names.iter().find_map(here)
    }

    pub fn yes(&self, names: &[&str]) -> bool {
        self.get(names).as_deref().and_then(crate::conf::parse_bool).unwrap_or(false)
    }

    /// A setting that must be there.
    pub fn need(&self, names: &[&str]) -> Result<String, UserError> {
        self.get(names).ok_or_else(|| self.wrong(&format!("{} is not set", names[0])))
    }

    /// The sections of one kind, `pgsql host { ... }` say, of this database or else of all of them.
    pub fn sections(&self, kind: &str) -> Vec<&Section> {
        let of =
            |holder: &'a Section| holder.sections.iter().filter(|section| section.kind == kind).collect();
        let own: Vec<&Section> = of(self.section);
        if own.is_empty() { of(self.settings.root()) } else { own }
    }

    /// An error of the configuration, with its place.
    pub fn wrong(&self, what: &str) -> UserError {
        UserError::Invalid(format!("{}: {what}", self.section.place))
    }
}
