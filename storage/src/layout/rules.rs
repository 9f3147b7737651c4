//! What the other end must know of our names: the same rules as in `names`, as data.

use std::path::Path;

use dsync_model::{NamespaceRules, Reserved, Where};

use super::names::{BESIDE_MAIL, FILE_NAME_BYTES_MAX, LOCK_BYTES, TRASH};
use super::{Format, IMAP, Index, Kind, Layout};

impl Layout {
    /// Which names can be held here, of an account that is all there is.
    pub fn rules(&self) -> NamespaceRules {
        let mut rules = NamespaceRules {
            inbox: self.has_inbox,
            takes_part: true,
            // A separator of the namespace within a part could not be told from one between two.
            separators: self.separator.into_iter().collect(),
            encoded: !self.utf8,
            ..NamespaceRules::default()
        };
        let mut reserve = |place, text: &str| {
            rules.reserved.push(Reserved { place, text: text.to_owned() });
        };
        reserve(Where::FirstBegin, "~");
        if self.kind == Kind::MaildirPlusPlus {
            rules.separators.push('.');
            // One dot in front.
            rules.name_bytes_max = FILE_NAME_BYTES_MAX as u32 - 1;
        } else {
            reserve(Where::FirstBegin, TRASH);
            match &self.dirname {
                Some(dirname) => reserve(Where::Part, dirname),
                None if self.format == Format::Maildir => {
                    ["cur", "new", "tmp"].iter().for_each(|name| reserve(Where::Part, name));
                }
                None if self.format == Format::Mbox => {
                    reserve(Where::Part, IMAP);
                    reserve(Where::PartEnd, ".lock");
                    reserve(Where::First, &self.subscriptions);
                }
                None => {}
            }
            if !self.has_imap() {
                BESIDE_MAIL.iter().for_each(|begin| reserve(Where::PartBegin, begin));
            }
            let lock = if self.has_imap() { LOCK_BYTES } else { 0 };
            rules.part_bytes_max = (FILE_NAME_BYTES_MAX - lock) as u32;
        }
        for path in self.others() {
            let Some(text) = path.strip_prefix(self.mailboxes()).ok().and_then(Path::to_str) else {
                continue;
            };
            let reserved = match (self.kind, text.strip_prefix('.')) {
                (Kind::MaildirPlusPlus, None) => continue,
                (Kind::MaildirPlusPlus, Some(name)) => {
                    Reserved { place: Where::Path, text: name.replace('.', "/") }
                }
                _ => Reserved { place: Where::PathBegin, text: text.to_owned() },
            };
            rules.reserved.push(reserved);
        }
        rules
    }

    /// Paths that may lie among the mailboxes and are none.
    fn others(&self) -> Vec<std::path::PathBuf> {
        let index = match &self.index {
            Index::At(root) => Some(root),
            Index::Beside | Index::Memory => None,
        };
        let roots = [&self.control, &self.alt, &self.volatile, &self.cache, &self.inbox];
        let mut all: Vec<_> = roots.into_iter().flatten().chain(index).cloned().collect();
        all.push(self.subscriptions_file());
        if self.format == Format::Mdbox {
            all.extend([self.storage(), self.map()]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use dsync_model::{MailboxName, NameRules};
    use proptest::prelude::*;

    use super::*;

    fn layouts() -> Vec<Layout> {
        let mut all = Vec::new();
        for format in [Format::Maildir, Format::Mbox, Format::Sdbox, Format::Mdbox] {
            for kind in [Kind::Fs, Kind::MaildirPlusPlus] {
                if kind == Kind::MaildirPlusPlus && format != Format::Maildir {
                    continue;
                }
                for (utf8, has_inbox) in [(false, true), (true, false)] {
                    let mut layout = Layout::new(format, "/m");
                    (layout.kind, layout.utf8, layout.has_inbox) = (kind, utf8, has_inbox);
                    layout.control = Some("/m/control".into());
                    layout.index = Index::At("/m/.i".into());
                    all.push(layout);
                }
            }
        }
        all
    }

    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z.~_]{1,4}",
            "[äß日.]{60,130}",
            "[a-z]{240,300}",
            "(cur|new|tmp|~x|control|[.]i|i|dbox-Mails|INBOX|inbox|storage|subscriptions|[.]imap|a[.]lock|dovecot[.]index[.]log|maildirfolder|[.][.]DOVECOT-Trash|.subscriptions)",
        ]
    }

    proptest! {
        /// Both ends must come to the same, so the rules have to say exactly what the layout does.
        #[test]
        fn the_rules_are_those_of_the_layout(parts in prop::collection::vec(part(), 1..4)) {
            let Ok(name) = MailboxName::new(&parts) else { return Ok(()) };
            for layout in layouts() {
                let rules = NameRules { namespaces: vec![layout.rules()] };
                let held = rules.hold(&name);
                prop_assert!(layout.stored(&held).is_ok(), "{layout:?} {held:?}");
                prop_assert!(rules.holds(&held), "{:?} is held as {:?}", held, rules.hold(&held));
                prop_assert_eq!(layout.stored(&name).is_ok() , held == name, "{:?} {:?}", layout, held);
                let second = rules.hold_numbered(&name, 2);
                prop_assert!(layout.stored(&second).is_ok() && rules.holds(&second), "{second:?}");
                prop_assert!(held == name || (rules.is_instead(&held, &name) && rules.is_instead(&second, &name)));
            }
        }
    }
}
