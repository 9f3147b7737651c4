//! Which mailboxes and messages a session is about: `-m`, `-g`, `-x`, `-n`, `-t` and their kin become the session's options.

use dsync_accounts::{Settings, User};
use dsync_session::model::{Filter, Namespaces};
use dsync_session::proto::{Options, Purpose};

use crate::Failed;
use crate::args::{Changes, Common};

/// Options of a session that changes something.
pub fn changing(common: &Common, changes: &Changes) -> Result<Options, Failed> {
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
        ..mailboxes(common)
    })
}

/// Options that say only which mailboxes. Special uses stand in them as they were given: see [`for_user`].
pub fn mailboxes(common: &Common) -> Options {
    let empty_name = common.mailbox.iter().any(String::is_empty);
    let tree_only = empty_name || common.mailbox_guid.iter().any(|guid| guid.0.is_none());
    let named = common.mailbox.iter().filter(|name| !name.is_empty());
    Options {
        mailboxes: named.cloned().collect(),
        exclude: common.exclude.clone(),
        namespaces: namespaces(common),
        lock_wait_secs: common.lock_wait.unwrap_or(0),
        guids: common.mailbox_guid.iter().filter_map(|guid| guid.0).collect(),
        tree_only,
        ..Options::default()
    }
}

/// The options with the names of a user's mailboxes in place of special uses.
pub fn for_user(options: &Options, settings: &Settings, user: &User) -> Result<Options, Failed> {
    Ok(Options {
        mailboxes: special_uses(&options.mailboxes, "-m", settings, user)?,
        exclude: special_uses(&options.exclude, "-x", settings, user)?,
        ..options.clone()
    })
}

/// Puts the names of the mailboxes in place of `\Trash` and the like.
fn special_uses(
    names: &[String],
    option: &str,
    settings: &Settings,
    user: &User,
) -> Result<Vec<String>, Failed> {
    let mut masks = Vec::new();
    for name in names {
        if !name.starts_with('\\') {
            masks.push(name.clone());
            continue;
        }
        let found = settings.special_use(name, user)?;
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

/// Which namespaces are to take part. Which ones there are each end knows by itself.
pub fn namespaces(common: &Common) -> Namespaces {
    match &common.namespace[..] {
        _ if common.all_namespaces => Namespaces::All,
        [] => Namespaces::Usual,
        prefixes => Namespaces::Only(prefixes.to_vec()),
    }
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
        let settings = Settings::load(Some("/dev/null".as_ref()), &[]).unwrap();
        for_user(&changing(common, changes)?, &settings, &User::default())
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
    fn namespaces_are_named_by_their_prefixes() {
        let only =
            |prefixes: &[&str]| Namespaces::Only(prefixes.iter().map(|text| text.to_string()).collect());
        for (line, expected) in [
            ("-m Work", Namespaces::Usual),
            ("-n Shared/", only(&["Shared/"])),
            ("-n '' -n Old.", only(&["", "Old."])),
            ("-N -n Old.", Namespaces::All),
        ] {
            assert_eq!(options(line).unwrap().namespaces, expected, "{line}");
        }
    }
}
