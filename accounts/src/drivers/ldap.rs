//! Users in LDAP.
//!
//! Values in filters and names are escaped, so that a user's name is never more than a name. Attributes become fields by 2.3's
//! lists (`user_attrs`) or 2.4's templates (`fields { home = %{ldap:homeDirectory} }`).

mod attrs;

use std::{io, sync::Arc, time::Duration};

use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, dn_escape, ldap_escape};

use super::{Fields, Source, background};
use crate::{
    conf::{Section, Settings},
    user::UserError,
    variables::{Vars, expand_escaped},
};
use attrs::Attrs;

const CONNECT_WAIT: Duration = Duration::from_secs(20);
/// Entries of one page of a listing: servers refuse larger answers.
const PAGE: i32 = 500;
/// Most users that one directory lists.
const USERS_MAX: usize = 10_000_000;

/// Settings of TLS that would make a connection another one than is made.
const UNHEARD_OF_TLS: [&str; 5] =
    ["tls_ca_cert_file", "tls_ca_cert_dir", "tls_cert_file", "tls_key_file", "tls_cipher_suite"];

/// How to reach a directory. It holds a password: never printed.
#[derive(Clone)]
struct Directory {
    uris: Vec<String>,
    starttls: bool,
    dn: String,
    password: String,
    base: String,
    scope: Scope,
}

/// What the password of a user is compared with.
pub(crate) enum Login {
    /// There is no such user.
    Unknown,
    /// The directory itself has checked it.
    Bound(bool),
    Fields(Fields),
}

/// The fields that the directory gives for a user, if it has them.
pub(crate) fn user(settings: &Settings, section: &Section, name: &str) -> Result<Option<Fields>, UserError> {
    let source = Source::of(settings, section)?;
    let filter = source.need(&["user_filter", "filter", "userdb_ldap_filter"])?;
    let attrs = Attrs::of(&source, section, "user_attrs", "homeDirectory=home,uidNumber=uid,gidNumber=gid")?;
    let found = one(&Directory::of(&source, name)?, &filter, &attrs, name)?;
    found.map(|(_, entry)| attrs.fields(&entry, name)).transpose()
}

/// What the directory has to check a user's password with, and the scheme of passwords that do not name theirs.
pub(crate) fn login(
    settings: &Settings,
    section: &Section,
    name: &str,
    password: &str,
) -> Result<(Login, String), UserError> {
    let source = Source::of(settings, section)?;
    let scheme =
        source.get(&["default_pass_scheme", "default_password_scheme", "passdb_default_password_scheme"]);
    let scheme = scheme.unwrap_or_else(|| "CRYPT".to_owned());
    let bind = source.yes(&["auth_bind", "bind", "passdb_ldap_bind"]);
    let directory = Directory::of(&source, name)?;
    let escaped = |template: &str, escape: &dyn Fn(&str) -> String| {
        expand_escaped(template, &Vars::of_name(name), escape)
            .map_err(|source| UserError::Variable { field: "LDAP".to_owned(), source })
    };
    let dn_template =
        source.get(&["auth_bind_userdn", "bind_userdn", "passdb_ldap_bind_userdn"]).filter(|_| bind);
    if let Some(template) = dn_template {
        let dn = escaped(&template, &|value| dn_escape(value).into_owned())?;
        return Ok((Login::Bound(directory.bound(dn, password)?), scheme));
    }
    let filter = source.need(&["pass_filter", "filter", "passdb_ldap_filter"])?;
    let attrs = Attrs::of(&source, section, "pass_attrs", "uid=user,userPassword=password")?;
    let Some((dn, entry)) = one(&directory, &filter, &attrs, name)? else {
        return Ok((Login::Unknown, scheme));
    };
    if bind {
        return Ok((Login::Bound(directory.bound(dn, password)?), scheme));
    }
    Ok((Login::Fields(attrs.fields(&entry, name)?), scheme))
}

/// All users that the directory lists.
pub(crate) fn names(settings: &Settings, section: &Section) -> Result<Vec<String>, UserError> {
    let source = Source::of(settings, section)?;
    let filter = source.get(&["iterate_filter", "userdb_ldap_iterate_filter"]);
    let filter = filter.unwrap_or_else(|| "(objectClass=posixAccount)".to_owned());
    let modern = section.of_kind("iterate_fields").next().map(fields_of);
    let attrs = match modern {
        Some(fields) => Attrs::modern(fields),
        None => Attrs::parse(&source.get(&["iterate_attrs"]).unwrap_or_else(|| "uid=user".to_owned())),
    };
    let directory = Directory::of(&source, "")?;
    let wanted = attrs.names();
    let entries = background::wait("LDAP", async move {
        let mut ldap = directory.connect().await?;
        let base = directory.base.clone();
        let pages: Vec<Box<dyn ldap3::adapters::Adapter<'_, _, _>>> = vec![
            Box::new(ldap3::adapters::EntriesOnly::new()),
            Box::new(ldap3::adapters::PagedResults::new(PAGE)),
        ];
        let search = ldap.streaming_search_with(pages, &base, directory.scope, &filter, wanted).await;
        let mut search = search.map_err(failed)?;
        let mut entries = Vec::new();
        while let Some(entry) = search.next().await.map_err(failed)? {
            if entries.len() >= USERS_MAX {
                return Err(UserError::Invalid(format!("LDAP: more than {USERS_MAX} users")));
            }
            entries.push(SearchEntry::construct(entry));
        }
        search.finish().await.success().map_err(failed)?;
        Ok(entries)
    })?;
    let mut names = Vec::with_capacity(entries.len());
    for entry in entries {
        let fields = attrs.fields(&entry, "")?;
        names.extend(fields.into_iter().filter(|(key, _)| key == "user").map(|(_, value)| value));
    }
    Ok(names)
}

fn fields_of(section: &Section) -> Fields {
    let text = |key: &str| section.text(key).map(str::to_owned);
    section.entries.iter().filter_map(|entry| Some((entry.key.clone(), text(&entry.key)?))).collect()
}

/// Searches for one entry; gives its name, too.
fn one(
    directory: &Directory,
    filter: &str,
    attrs: &Attrs,
    name: &str,
) -> Result<Option<(String, SearchEntry)>, UserError> {
    let filter = expand_escaped(filter, &Vars::of_name(name), |value| ldap_escape(value).into_owned())
        .map_err(|source| UserError::Variable { field: "LDAP filter".to_owned(), source })?;
    if ldap3::parse_filter(&filter).is_err() {
        return Err(UserError::Invalid("LDAP: the filter cannot be read".to_owned()));
    }
    let (directory, wanted) = (directory.clone(), attrs.names());
    let mut entries = background::wait("LDAP", async move {
        let mut ldap = directory.connect().await?;
        let found = ldap.search(&directory.base, directory.scope, &filter, wanted).await.map_err(failed)?;
        let (entries, _) = found.success().map_err(failed)?;
        let entries: Vec<SearchEntry> = entries.into_iter().map(SearchEntry::construct).collect();
        // The connection is closed by the server's leave or ours; the answer is there.
        if let Err(error) = ldap.unbind().await {
            tracing::debug!("LDAP: unbind: {error}");
        }
        Ok(entries)
    })?;
    if entries.len() > 1 {
        return Err(UserError::Invalid(format!("LDAP: more than one entry for user {name:?}")));
    }
    Ok(entries.pop().map(|entry| (entry.dn.clone(), entry)))
}

impl Directory {
    fn of(source: &Source<'_>, name: &str) -> Result<Directory, UserError> {
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let uris = match (source.get(&["uris", "ldap_uris"]), source.get(&["hosts"])) {
            (Some(uris), _) => words(uris),
            (None, Some(hosts)) => words(hosts).iter().map(|host| format!("ldap://{host}")).collect(),
            (None, None) => return Err(source.wrong("LDAP: neither hosts nor uris is set")),
        };
        let base = source.need(&["base", "ldap_base"])?;
        let base = expand_escaped(&base, &Vars::of_name(name), |value| dn_escape(value).into_owned())
            .map_err(|source| UserError::Variable { field: "LDAP base".to_owned(), source })?;
        let scope = match source.get(&["scope", "ldap_scope"]).as_deref() {
            None | Some("subtree") => Scope::Subtree,
            Some("onelevel") => Scope::OneLevel,
            Some("base") => Scope::Base,
            Some(other) => return Err(source.wrong(&format!("LDAP: scope {other:?}"))),
        };
        if source.yes(&["sasl_bind"]) || source.get(&["ldap_auth_sasl_mechanisms"]).is_some() {
            return Err(UserError::Unsupported("LDAP: SASL binds are not supported by dsync".to_owned()));
        }
        // Certificates are checked against the system's authorities, and always.
        if let Some(name) = UNHEARD_OF_TLS.iter().find(|name| source.get(&[name]).is_some()) {
            return Err(UserError::Unsupported(format!(
                "LDAP: {name} is not supported by dsync: the authorities of the system are trusted, and no certificate is shown"
            )));
        }
        let checking = source.get(&["tls_require_cert"]);
        if checking.is_some_and(|how| !matches!(how.as_str(), "demand" | "hard")) {
            return Err(UserError::Unsupported(
                "LDAP: tls_require_cert is not supported by dsync: certificates are always checked"
                    .to_owned(),
            ));
        }
        Ok(Directory {
            uris,
            starttls: source.yes(&["tls", "ldap_starttls"]),
            dn: source.get(&["dn", "ldap_auth_dn"]).unwrap_or_default(),
            password: source.get(&["dnpass", "ldap_auth_dn_password"]).unwrap_or_default(),
            base,
            scope,
        })
    }

    /// Connects to the first server that answers, and binds as who may search.
    async fn connect(&self) -> Result<Ldap, UserError> {
        let mut ldap = self.open().await?;
        if !self.dn.is_empty() {
            let bound = ldap.simple_bind(&self.dn, &self.password).await.map_err(failed)?;
            bound.success().map_err(failed)?;
        }
        Ok(ldap)
    }

    async fn open(&self) -> Result<Ldap, UserError> {
        let mut last = None;
        for uri in &self.uris {
            let settings = LdapConnSettings::new().set_conn_timeout(CONNECT_WAIT).set_starttls(self.starttls);
            match LdapConnAsync::with_settings(settings, uri).await {
                Ok((connection, ldap)) => {
                    tokio::spawn(async move {
                        if let Err(error) = connection.drive().await {
                            tracing::debug!("LDAP connection: {error}");
                        }
                    });
                    return Ok(ldap);
                }
                Err(error) => last = Some(failed(error)),
            }
        }
        Err(last.unwrap_or_else(|| UserError::Invalid("LDAP: no server is named".to_owned())))
    }

    /// Whether the directory takes this password for this name.
    fn bound(&self, dn: String, password: &str) -> Result<bool, UserError> {
        // A bind without a password is anonymous, and succeeds for every name.
        if password.is_empty() || dn.is_empty() {
            return Ok(false);
        }
        let (directory, password) = (self.clone(), Arc::<str>::from(password));
        background::wait("LDAP", async move {
            let mut ldap = directory.open().await?;
            let answer = ldap.simple_bind(&dn, &password).await.map_err(failed)?;
            match answer.rc {
                0 => Ok(true),
                // invalidCredentials
                49 => Ok(false),
                _ => answer.success().map(|_| true).map_err(failed),
            }
        })
    }
}

fn failed(error: LdapError) -> UserError {
    match error {
        LdapError::Io { source } => UserError::Temporary { what: "LDAP".to_owned(), source },
        other => {
            UserError::Temporary { what: "LDAP".to_owned(), source: io::Error::other(other.to_string()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_heeded_are_refused() {
        let hosts = "hosts = localhost\nbase = dc=x\nuser_filter = (uid=%u)\n";
        let refused = |line: &str| {
            let settings = Settings::parse(&format!(
                "{hosts}{line}\nuserdb {{\n driver = ldap\n fields {{\n  home = /h\n }}\n}}\n"
            ))
            .unwrap();
            let section = settings.root().of_kind("userdb").next().unwrap();
            user(&settings, section, "alice").unwrap_err().to_string()
        };
        for line in [
            "tls_ca_cert_file = /etc/ca.pem",
            "tls_key_file = /k",
            "tls_require_cert = never",
            "sasl_bind = yes",
            "ldap_auth_sasl_mechanisms = external",
        ] {
            let said = refused(line);
            assert!(said.contains("not supported by dsync"), "{line}: {said}");
        }
    }
}
