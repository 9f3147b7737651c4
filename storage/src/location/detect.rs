//! Finds out where mail is, and in which format, where the location does not say (storage formats reference, 2.3).

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::layout::{Format, Layout};

/// Where mail is delivered to users of mbox.
const SPOOLS: [&str; 2] = ["/var/mail", "/var/spool/mail"];

/// Whose mail it is, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owner<'a> {
    pub name: Option<&'a str>,
    pub home: Option<&'a Path>,
}

/// Looks at what lies at `root`.
pub(super) fn at(root: &Path, owner: Owner<'_>) -> Option<Layout> {
    at_with(root, owner, &SPOOLS.map(Path::new))
}

fn at_with(root: &Path, owner: Owner<'_>, spools: &[&Path]) -> Option<Layout> {
    // An mdbox has both.
    let format = [(Format::Mdbox, "storage"), (Format::Sdbox, "mailboxes"), (Format::Maildir, "cur")];
    let found = format.into_iter().find(|(_, directory)| root.join(directory).is_dir());
    if let Some((format, _)) = found {
        return Some(Layout::new(format, root));
    }
    if root.is_file() {
        // It is an INBOX; the other mail is where it usually is.
        let folders = mbox_root(owner.home?)?;
        return Some(Layout { inbox: Some(root.to_owned()), ..Layout::new(Format::Mbox, folders) });
    }
    if !is_mbox_root(root) {
        return None;
    }
    Some(Layout { inbox: spooled(owner.name, spools), ..Layout::new(Format::Mbox, root) })
}

/// Looks for mail in a home, where each format usually has it.
pub(super) fn in_home(owner: Owner<'_>) -> Option<Layout> {
    in_home_with(owner, &SPOOLS.map(Path::new))
}

fn in_home_with(owner: Owner<'_>, spools: &[&Path]) -> Option<Layout> {
    let home = owner.home?;
    // Dovecot 2.3.19.1 was seen to look for sdbox first.
    let usual = [
        (Format::Sdbox, "sdbox", "mailboxes"),
        (Format::Mdbox, "mdbox", "storage"),
        (Format::Maildir, "Maildir", "cur"),
    ];
    let found = usual.into_iter().find(|(_, root, directory)| home.join(root).join(directory).is_dir());
    if let Some((format, root, _)) = found {
        return Some(Layout::new(format, home.join(root)));
    }
    let root = mbox_root(home)?;
    Some(Layout { inbox: spooled(owner.name, spools), ..Layout::new(Format::Mbox, root) })
}

fn mbox_root(home: &Path) -> Option<PathBuf> {
    ["mail", "Mail"].map(|name| home.join(name)).into_iter().find(|root| is_mbox_root(root))
}

fn is_mbox_root(root: &Path) -> bool {
    root.join(".imap").is_dir() || root.join("inbox").is_file() || root.join("mbox").is_file()
}

/// The user's own file among those that mail is delivered to; one that cannot be read and written is not theirs.
fn spooled(name: Option<&str>, spools: &[&Path]) -> Option<PathBuf> {
    let name = name.filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'))?;
    let ours = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_ok()
    };
    spools.iter().map(|spool| spool.join(name)).find(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes what is listed: directories end in a slash, all else are files.
    fn make(home: &Path, paths: &str) {
        for path in paths.split_whitespace() {
            let full = home.join(path);
            if path.ends_with('/') {
                std::fs::create_dir_all(full).unwrap();
            } else {
                std::fs::create_dir_all(full.parent().unwrap()).unwrap();
                std::fs::write(full, "").unwrap();
            }
        }
    }

    /// Shown as format, root and INBOX, below the home.
    fn shown(layout: Option<Layout>, home: &Path) -> String {
        let below = |path: &Path| path.strip_prefix(home).unwrap().display().to_string();
        let Some(layout) = layout else { return "nothing".into() };
        let inbox = layout.inbox.map(|path| format!(" {}", below(&path))).unwrap_or_default();
        format!("{} {}{inbox}", layout.format, below(&layout.root))
    }

    fn check(paths: &str, look: impl FnOnce(Owner<'_>, &[&Path]) -> Option<Layout>, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path();
        make(home, paths);
        let owner = Owner { name: Some("alice"), home: Some(home) };
        let spools = [&*home.join("var/mail"), &*home.join("var/spool")];
        assert_eq!(shown(look(owner, &spools), home), expected, "{paths}");
    }

    #[test]
    fn what_a_root_holds() {
        for (paths, expected) in [
            ("m/storage/ m/mailboxes/ m/cur/", "mdbox m"),
            ("m/mailboxes/ m/cur/", "sdbox m"),
            ("m/cur/ m/.imap/", "maildir m"),
            ("m/.imap/", "mbox m"),
            ("m/inbox", "mbox m"),
            ("m/mbox", "mbox m"),
            ("m/inbox var/mail/alice", "mbox m var/mail/alice"),
            ("m/inbox var/spool/alice var/mail/bob", "mbox m var/spool/alice"),
            ("m mail/.imap/", "mbox mail m"),
            ("m Mail/mbox var/mail/alice", "mbox Mail m"),
            ("m", "nothing"),
            ("m/new/ m/tmp/", "nothing"),
            ("m/cur m/storage m/inbox/", "nothing"),
            ("", "nothing"),
        ] {
            let look =
                |owner: Owner<'_>, spools: &[&Path]| at_with(&owner.home.unwrap().join("m"), owner, spools);
            check(paths, look, expected);
        }
    }

    #[test]
    fn what_a_home_holds() {
        let all = "sdbox/mailboxes/ mdbox/storage/ Maildir/cur/ mail/.imap/ Mail/inbox var/mail/alice";
        for (paths, expected) in [
            (all, "sdbox sdbox"),
            ("mdbox/storage/ mdbox/mailboxes/ Maildir/cur/ mail/.imap/", "mdbox mdbox"),
            ("sdbox/ Maildir/cur/ mail/.imap/", "maildir Maildir"),
            ("Maildir/new/ mail/.imap/ Mail/inbox", "mbox mail"),
            ("mail/a Mail/inbox var/mail/alice", "mbox Mail var/mail/alice"),
            ("mail/mbox var/mail/bob", "mbox mail"),
            ("mail/a mbox var/mail/alice", "nothing"),
            ("", "nothing"),
        ] {
            check(paths, in_home_with, expected);
        }
    }

    #[test]
    fn a_user_name_never_leads_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), "secret spool/ok");
        let spool = directory.path().join("spool");
        for (name, found) in [("ok", true), ("../secret", false), ("..", false), ("", false), (".x", false)] {
            assert_eq!(spooled(Some(name), &[&spool]).is_some(), found, "{name}");
        }
    }
}
