//! Which mailboxes and messages a session is about: `-m`, `-g`, `-x`, `-n`, `-t` and their kin become the session's options.

use dsync_accounts::Settings;
use dsync_session::dovecot::Names;
use dsync_session::model::Filter;
use dsync_session::proto::{Options, Purpose};

use crate::Failed;
use crate::args::{Changes, Common};

/// Options of a session that changes something.
pub fn changing(common: &Common, changes: &Changes, settings: &Settings) -> Result<Options, Failed> {
    let mut filter = Filter {
        since: changes.since,
        until: changes.until,
        size_max: changes.max_size,
        ..Filter::default()
    };
    for condition in &changes.flag {
        let side = if condition.absent { &mut filter.without } else { &mut filter.with };
        *side = side.union(&condition.flag);
    }
    let purpose = if changes.dry_run { Purpose::DryRun } else { Purpose::Sync };
    Ok(Options {
        full: changes.full,
        allow_mass_delete: changes.allow_mass_delete,
        filter: Box::new(filter),
        purpose,
        purge: changes.purge,
        ..mailboxes(common, settings)?
    })
}

/// Options that say only which mailboxes.
pub fn mailboxes(common: &Common, settings: &Settings) -> Result<Options, Failed> {
    let empty_name = common.mailbox.iter().any(String::is_empty);
    let tree_only = empty_name || common.mailbox_guid.iter().any(|guid| guid.0.is_none());
    let named = common.mailbox.iter().filter(|name| !name.is_empty());
    let mut wanted = special_uses(named, "-m", settings)?;
    let mut exclude = special_uses(common.exclude.iter(), "-x", settings)?;
    namespaces(common, &settings.namespace_prefixes(), &mut wanted, &mut exclude)?;
    Ok(Options {
        mailboxes: wanted,
        exclude,
        lock_wait_secs: common.lock_wait.unwrap_or(0),
        guids: common.mailbox_guid.iter().filter_map(|guid| guid.0).collect(),
        tree_only,
        ..Options::default()
    })
}

/// Puts the names of the mailboxes in place of `\Trash` and the like.
fn special_uses<'a>(
    names: impl Iterator<Item = &'a String>,
    option: &str,
    settings: &Settings,
) -> Result<Vec<String>, Failed> {
    let mut masks = Vec::new();
    for name in names {
        if !name.starts_with('\\') {
            masks.push(name.clone());
            continue;
        }
        let found = settings.special_use(name);
        if found.is_empty() {
            // Dovecot ignores it. What was to be left alone would then be changed.
            let what = format!(
                "{option} {name}: no mailbox has that special use; the configuration names one by mailbox NAME {{ special_use = {name} }}"
            );
            return Err(Failed::new(68, anyhow::Error::msg(what)));
        }
        masks.extend(found);
    }
    Ok(masks)
}

/// What a Dovecot at the other end is told of names.
pub fn names(common: &Common, settings: &Settings) -> Result<Names, Failed> {
    let prefixes = settings.namespace_prefixes();
    let chosen = chosen(common, &prefixes)?.into_iter().map(str::to_owned).collect();
    Ok(Names { chosen, all: common.all_namespaces, prefixes, special_uses: Vec::new() })
}

/// The prefixes of the namespaces that `-n` names.
fn chosen<'a>(common: &Common, known: &'a [String]) -> Result<Vec<&'a str>, Failed> {
    let find = |prefix: &String| {
        let found = known.iter().find(|known| *known == prefix);
        let found = found.or_else(|| known.iter().find(|known| known.is_empty()));
        let missing = || Failed::new(68, anyhow::Error::msg(format!("-n {prefix:?}: no such namespace")));
        found.map(String::as_str).ok_or_else(missing)
    };
    common.namespace.iter().map(find).collect()
}

/// Leaves the namespaces that `-n` does not name. As in Dovecot, an unknown prefix stands for the namespace without one.
fn namespaces(
    common: &Common,
    known: &[String],
    wanted: &mut Vec<String>,
    exclude: &mut Vec<String>,
) -> Result<(), Failed> {
    if common.namespace.is_empty() || common.all_namespaces {
        return Ok(());
    }
    let chosen = chosen(common, known)?;
    let root = |prefix: &str| prefix.trim_end_matches(['/', '.']).to_owned();
    let others = known.iter().filter(|prefix| !prefix.is_empty() && !chosen.contains(&prefix.as_str()));
    exclude.extend(others.flat_map(|prefix| [root(prefix), format!("{prefix}*")]));
    if !chosen.contains(&"") && wanted.is_empty() {
        wanted.extend(chosen.iter().flat_map(|prefix| [root(prefix), format!("{prefix}*")]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn options(line: &str) -> Result<Options, Failed> {
        let words = ["dsync", "sync"].into_iter().chain(line.split(' ')).chain(["maildir:/x"]);
        let cli = Cli::try_parse_from(words.map(|word| if word == "''" { "" } else { word })).unwrap();
        let Command::Sync { common, changes, .. } = &cli.command else { panic!("a sync") };
        let special = "/dev/null";
        let settings = Settings::load(Some(special.as_ref()), &[]).unwrap();
        changing(common, changes, &settings)
    }

    #[test]
    fn an_empty_name_or_guid_is_the_tree_alone() {
        assert!(options("-m ''").unwrap().tree_only && options("-g ''").unwrap().tree_only);
        let both = options("-m Work -g 5d3a5f298348046b626d000026acbed8").unwrap();
        assert!(!both.tree_only && both.mailboxes == ["Work"] && both.guids.len() == 1);
    }

    #[test]
    fn conditions_add_up() {
        let filter = options("-O \\Seen -O -$Junk -O -\\Deleted -I 1k -t 946684800").unwrap().filter;
        assert!(
            filter.with.system == dsync_session::model::Flags::SEEN && filter.without.keywords.len() == 1
        );
        assert_eq!((filter.size_max, filter.since.map(|t| t.0)), (Some(1024), Some(946_684_800)));
    }

    #[test]
    fn a_special_use_that_no_mailbox_has_is_no_such_mailbox() {
        let failed = options("-x \\Trash").unwrap_err();
        assert_eq!(failed.status, 68);
        assert!(failed.error.to_string().contains("special_use = \\Trash"));
    }

    #[test]
    fn namespaces_become_masks() {
        let common = |line: &str| {
            let words = ["dsync", "sync"].into_iter().chain(line.split(' ')).chain(["maildir:/x"]);
            match Cli::try_parse_from(words.map(|word| if word == "''" { "" } else { word })).unwrap().command
            {
                Command::Sync { common, .. } => common,
                _ => panic!("a sync"),
            }
        };
        let known = ["".to_owned(), "Shared/".to_owned(), "Old.".to_owned()];
        for (line, wanted, excluded) in [
            ("-n ''", "", "Shared Shared/* Old Old.*"),
            ("-n Shared/", "Shared Shared/*", "Old Old.*"),
            ("-n Unknown/", "", "Shared Shared/* Old Old.*"),
            ("-n '' -n Old.", "", "Shared Shared/*"),
            ("-N -n Old.", "", ""),
        ] {
            let (mut masks, mut exclude) = (Vec::new(), Vec::new());
            namespaces(&common(line), &known, &mut masks, &mut exclude).unwrap();
            assert_eq!((masks.join(" ").as_str(), exclude.join(" ").as_str()), (wanted, excluded), "{line}");
        }
    }
}
