//! Which attribute becomes which field: `homeDirectory=home,=mail=maildir:~/%{ldap:uid}` of 2.3, templates of 2.4.

use ldap3::SearchEntry;

use super::super::{Fields, Source};
use crate::{
    conf::Section,
    user::UserError,
    userdb::fields,
    variables::{Vars, expand},
};

/// The fields to make, in order.
pub(super) struct Attrs(Vec<Attr>);

struct Attr {
    /// The attribute whose value it is, or `%$` in the template.
    from: Option<String>,
    field: String,
    template: Option<String>,
}

impl Attrs {
    /// Reads 2.3's list of this name, or else 2.4's `fields`.
    pub fn of(source: &Source<'_>, section: &Section, list: &str, default: &str) -> Result<Attrs, UserError> {
        let modern = fields(section);
        match source.get(&[list]) {
            Some(text) => Ok(Attrs::parse(&text)),
            None if source.is_old() => Ok(Attrs::parse(default)),
            None if modern.is_empty() => Err(source.wrong("LDAP: no fields")),
            None => Ok(Attrs::modern(modern)),
        }
    }

    pub fn modern(fields: Fields) -> Attrs {
        let attr = |(field, template): (String, String)| {
            let field = match field.as_str() {
                "user" | "username" => "user".to_owned(),
                _ => field,
            };
            Attr { from: None, field, template: Some(template) }
        };
        Attrs(fields.into_iter().map(attr).collect())
    }

    pub fn parse(list: &str) -> Attrs {
        let attr = |item: &str| {
            let (from, rest) = item.split_once('=').unwrap_or((item, item));
            let (field, template) = match rest.split_once('=') {
                Some((field, template)) => (field, Some(template.to_owned())),
                None => (rest, None),
            };
            let from = Some(from.trim().to_owned()).filter(|from| !from.is_empty());
            Attr { from, field: field.trim().to_owned(), template }
        };
        Attrs(list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(attr).collect())
    }

    /// The attributes to ask for.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for attr in &self.0 {
            names.extend(attr.from.clone());
            let mut rest = attr.template.as_deref().unwrap_or_default();
            while let Some(at) = rest.find("ldap:") {
                rest = &rest[at + "ldap:".len()..];
                let end = rest.find(['}', '|', ' ', ':']).unwrap_or(rest.len());
                names.push(rest[..end].to_owned());
            }
        }
        if names.is_empty() {
            // No attribute at all, where none named would mean all of them.
            names.push("1.1".to_owned());
        }
        names
    }

    /// The fields of an entry; attributes that it does not have make none.
    pub fn fields(&self, entry: &SearchEntry, user: &str) -> Result<Fields, UserError> {
        let found: Fields = entry
            .attrs
            .iter()
            .filter_map(|(key, values)| Some((key.clone(), values.first()?.clone())))
            .collect();
        let mut made = Fields::new();
        for attr in &self.0 {
            let value = match &attr.from {
                Some(from) => {
                    let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(from);
                    match found.iter().find(same) {
                        Some((_, value)) => Some(value.clone()),
                        None => continue,
                    }
                }
                None => None,
            };
            let value = match (&attr.template, value) {
                (None, value) => value.unwrap_or_default(),
                (Some(template), value) => {
                    // The value's place is marked by a character that no value of a configuration has.
                    let marked = template.replace("%$", "\u{1}");
                    let vars = Vars::of_name(user).with_found(&found);
                    let expanded = expand(&marked, &vars)
                        .map_err(|source| UserError::Variable { field: attr.field.clone(), source })?;
                    expanded.replace('\u{1}', &value.unwrap_or_default())
                }
            };
            made.push((attr.field.clone(), value));
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn made(attrs: &Attrs) -> Vec<String> {
        let values = [("homeDirectory", "/home/b"), ("uid", "bob"), ("quotaBytes", "5")];
        let attributes: HashMap<String, Vec<String>> =
            values.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into();
        let entry = SearchEntry { dn: "uid=bob".to_owned(), attrs: attributes, bin_attrs: HashMap::new() };
        let fields = attrs.fields(&entry, "bob@x").unwrap();
        fields.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn both_syntaxes_make_fields() {
        let old = Attrs::parse(
            "homedirectory=home, uid, missing=gid, quotaBytes=quota_rule=*:bytes=%$, =mail=maildir:/m/%d/%{ldap:uid}",
        );
        let want = ["home=/home/b", "uid=bob", "quota_rule=*:bytes=5", "mail=maildir:/m/x/bob"];
        assert_eq!(made(&old), want);
        assert_eq!(old.names(), ["homedirectory", "uid", "missing", "quotaBytes", "uid"]);
        let field = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let new = Attrs::modern(vec![field("home", "%{ldap:homeDirectory}"), field("uid", "vmail")]);
        assert_eq!(made(&new), ["home=/home/b", "uid=vmail"]);
        assert_eq!(new.names(), ["homeDirectory"]);
        assert_eq!(Attrs::modern(vec![field("uid", "vmail")]).names(), ["1.1"]);
    }
}
