//! Whose mail it is: one user, or the many that `-A`, `-F` and masks stand for.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use dsync_accounts::{Settings, User, check_user, invoking_user, iterate, lookup, unlisted};
use dsync_session::model::Mask;

use crate::Failed;
use crate::args::{Common, Users};

/// The users of a run.
#[derive(Debug)]
pub enum Who {
    One(Box<User>),
    /// Names, each once, not looked up yet.
    Many(Vec<String>),
}

/// Finds out whose mail the options mean.
pub fn who(settings: &Settings, common: &Common, users: &Users) -> Result<Who, Failed> {
    if users.all_users {
        return Ok(Who::Many(iterate(settings)?));
    }
    if let Some(path) = &users.user_file {
        return from_file(path).map(Who::Many);
    }
    match &common.user {
        Some(mask) if mask.contains(['*', '?']) => {
            let wanted = Mask::wildcards(mask);
            let names = iterate(settings)?.into_iter().filter(|name| wanted.matches_text(name, '/'));
            let names: Vec<String> = names.collect();
            if names.is_empty() {
                return Err(Failed::new(67, anyhow::Error::msg(format!("no user matches {mask:?}"))));
            }
            Ok(Who::Many(names))
        }
        Some(name) => Ok(Who::One(Box::new(find(settings, name, users.no_userdb_lookup)?))),
        None => Ok(Who::One(Box::new(invoking_user()))),
    }
}

/// A user who is named, or who runs it.
pub fn one(settings: &Settings, name: Option<&str>) -> Result<User, Failed> {
    name.map_or_else(|| Ok(invoking_user()), |name| find(settings, name, false))
}

/// Looks one user up.
pub fn find(settings: &Settings, name: &str, no_lookup: bool) -> Result<User, Failed> {
    check_user(name)?;
    Ok(if no_lookup { unlisted(settings, name)? } else { lookup(settings, name)? })
}

fn from_file(path: &Path) -> Result<Vec<String>, Failed> {
    let place = if path == Path::new("-") { "stdin".into() } else { path.display().to_string() };
    let failed = |error| Failed::file(format!("-F: {place}: cannot be read"), error);
    let source: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    };
    let (mut names, mut seen) = (Vec::new(), HashSet::new());
    for (at, line) in source.lines().enumerate() {
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::InvalidData => {
                let what = format!("-F: {place}: line {}: is no text in UTF-8", at + 1);
                Failed::new(64, anyhow::Error::msg(what))
            }
            _ => failed(error),
        })?;
        let name = line.trim();
        if !name.is_empty() && seen.insert(name.to_owned()) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
