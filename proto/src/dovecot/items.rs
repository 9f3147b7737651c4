//! The items of a session, each one line: what their columns are called and how each is written.
//!
//! Fields stand in the order in which Dovecot 2.3.19 sends its columns, which is also the order in which we send them. Names that Dovecot
//! uses are kept, so that both can be read side by side.

use dsync_model::MailboxGuid;

use super::text;
use crate::ProtoError;

/// A number that travels in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hex(pub u64);

/// A list within a value. Its elements are bytes: names need not be UTF-8.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Elements(pub Vec<Vec<u8>>);

/// How a value is read and written.
trait Value: Sized {
    const WHAT: &'static str;
    fn read(value: Vec<u8>) -> Option<Self>;
    fn write(&self) -> Vec<u8>;
}

/// How a column is read and written: it may be unset, or must be there.
trait Field: Sized {
    const REQUIRED: bool;
    fn take(value: Option<Vec<u8>>) -> Result<Self, &'static str>;
    fn give(&self) -> Option<Vec<u8>>;
}

/// One kind of line.
pub(super) trait Line: Sized {
    /// Names of the columns, and whether each must be in a peer's table.
    const COLUMNS: &'static [(&'static str, bool)];
    /// Reads values that stand in the order of `COLUMNS`.
    fn take(values: Vec<Option<Vec<u8>>>) -> Result<Self, ProtoError>;
    fn give(&self) -> Vec<Option<Vec<u8>>>;
}

impl Value for Vec<u8> {
    const WHAT: &'static str = "bytes";
    fn read(value: Vec<u8>) -> Option<Self> {
        Some(value)
    }
    fn write(&self) -> Vec<u8> {
        self.clone()
    }
}

impl Value for String {
    const WHAT: &'static str = "text in UTF-8";
    fn read(value: Vec<u8>) -> Option<Self> {
        String::from_utf8(value).ok()
    }
    fn write(&self) -> Vec<u8> {
        self.clone().into_bytes()
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            const WHAT: &'static str = "a number in range";
            fn read(value: Vec<u8>) -> Option<Self> {
                let digits = value.iter().all(u8::is_ascii_digit).then_some(value)?;
                String::from_utf8(digits).ok()?.parse().ok()
            }
            fn write(&self) -> Vec<u8> {
                self.to_string().into_bytes()
            }
        }
    )*};
}
numbers!(u32, u64);

impl Value for Hex {
    const WHAT: &'static str = "a hexadecimal number in range";
    fn read(value: Vec<u8>) -> Option<Self> {
        let digits = value.iter().all(u8::is_ascii_hexdigit).then_some(value)?;
        u64::from_str_radix(&String::from_utf8(digits).ok()?, 16).ok().map(Hex)
    }
    fn write(&self) -> Vec<u8> {
        format!("{:x}", self.0).into_bytes()
    }
}

impl Value for Elements {
    const WHAT: &'static str = "a list of bearable length";
    fn read(value: Vec<u8>) -> Option<Self> {
        text::split_list(&value).map(Elements)
    }
    fn write(&self) -> Vec<u8> {
        text::join_list(&self.0)
    }
}

impl Value for MailboxGuid {
    const WHAT: &'static str = "a GUID of 32 hexadecimal digits";
    fn read(value: Vec<u8>) -> Option<Self> {
        MailboxGuid::parse(std::str::from_utf8(&value).ok()?)
    }
    fn write(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl<T: Value> Field for T {
    const REQUIRED: bool = true;
    fn take(value: Option<Vec<u8>>) -> Result<Self, &'static str> {
        T::read(value.ok_or("missing")?).ok_or(T::WHAT)
    }
    fn give(&self) -> Option<Vec<u8>> {
        Some(self.write())
    }
}

impl<T: Value> Field for Option<T> {
    const REQUIRED: bool = false;
    fn take(value: Option<Vec<u8>>) -> Result<Self, &'static str> {
        value.map(|value| T::read(value).ok_or(T::WHAT)).transpose()
    }
    fn give(&self) -> Option<Vec<u8>> {
        self.as_ref().map(Value::write)
    }
}

/// Set, to whatever, is true.
impl Field for bool {
    const REQUIRED: bool = false;
    fn take(value: Option<Vec<u8>>) -> Result<Self, &'static str> {
        Ok(value.is_some())
    }
    fn give(&self) -> Option<Vec<u8>> {
        self.then(Vec::new)
    }
}

macro_rules! items {
    ($($(#[$about:meta])* $item:ident $tag:literal { $($(#[$note:meta])* $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, PartialEq, Eq, Debug, Default)]
            pub struct $item { $($(#[$note])* pub $field: $kind,)* }

            impl Line for $item {
                const COLUMNS: &'static [(&'static str, bool)] =
                    &[$((column(stringify!($field)), <$kind as Field>::REQUIRED)),*];
                fn take(values: Vec<Option<Vec<u8>>>) -> Result<Self, ProtoError> {
                    let mut values = values.into_iter();
                    Ok($item { $($field: <$kind as Field>::take(values.next().flatten())
                        .map_err(|what| wrong($tag, column(stringify!($field)), what))?,)* })
                }
                fn give(&self) -> Vec<Option<Vec<u8>>> {
                    vec![$(self.$field.give()),*]
                }
            }
        )*
        /// One line of a session.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Item {
            $($item(Box<$item>),)*
            /// The dot that ends a list.
            End,
            /// `X`: the peer goes, and the connection that breaks next is not the news.
            Close,
        }

        /// The tables of all items but that of cache fields, by tag.
        pub(super) const TABLES: &[(u8, &[(&str, bool)])] = &[$(($tag, <$item as Line>::COLUMNS)),*];

        pub(super) fn take(tag: u8, values: Vec<Option<Vec<u8>>>) -> Result<Item, ProtoError> {
            match tag {
                $($tag => Ok(Item::$item(Box::new(Line::take(values)?))),)*
                tag => Err(ProtoError::Malformed(format!("there is no item {:?}", char::from(tag)))),
            }
        }

        impl Item {
            /// Tag and values; the dot and `X` have no values.
            pub(super) fn give(&self) -> (u8, Vec<Option<Vec<u8>>>) {
                match self {
                    $(Item::$item(item) => ($tag, item.give()),)*
                    Item::End => (b'.', Vec::new()),
                    Item::Close => (b'X', Vec::new()),
                }
            }
        }

        $(impl From<$item> for Item {
            fn from(item: $item) -> Item {
                Item::$item(Box::new(item))
            }
        })*
    };
}

/// Two columns are called by words that Rust keeps for itself.
const fn column(field: &'static str) -> &'static str {
    match field.as_bytes() {
        b"kind" => "type",
        _ => field,
    }
}

fn wrong(tag: u8, column: &str, what: &str) -> ProtoError {
    let what = if what == "missing" { "is missing".to_owned() } else { format!("is not {what}") };
    ProtoError::Malformed(format!("Dovecot's item {}: {column} {what}", char::from(tag)))
}

items! {
    /// Who the peer is and, from the master, what is to be done.
    Handshake b'H' {
        hostname: Vec<u8>,
        sync_ns_prefix: Option<Vec<u8>>,
        sync_box: Option<Vec<u8>>,
        sync_box_guid: Option<MailboxGuid>,
        /// `f` full, `c` changed, `s` by state.
        sync_type: Option<Vec<u8>>,
        debug: bool,
        sync_visible_namespaces: bool,
        exclude_mailboxes: Option<Elements>,
        send_mail_requests: bool,
        /// The slave sends.
        backup_send: bool,
        /// The slave receives.
        backup_recv: bool,
        lock_timeout: Option<u32>,
        no_mail_sync: bool,
        /// One way, but what the receiver has of its own stays.
        no_backup_overwrite: bool,
        purge_remote: bool,
        no_notify: bool,
        sync_since_timestamp: Option<u64>,
        sync_max_size: Option<u64>,
        sync_flags: Option<Vec<u8>>,
        sync_until_timestamp: Option<u64>,
        virtual_all_box: Option<Vec<u8>>,
        empty_hdr_workaround: bool,
        import_commit_msgs_interval: Option<u32>,
        hashed_headers: Option<Elements>,
        alt_char: Option<Vec<u8>>,
    }
    /// Up to where both ends agree on a mailbox.
    State b'S' {
        mailbox_guid: MailboxGuid,
        last_uidvalidity: u32,
        last_common_uid: u32,
        last_common_modseq: u64,
        last_common_pvt_modseq: u64,
        last_messages_count: Option<u32>,
        changes_during_sync: bool,
    }
    /// One name of the tree.
    Node b'N' {
        name: Elements,
        /// `y` it exists, `n` it does not, `d` it was deleted.
        existence: Vec<u8>,
        mailbox_guid: Option<MailboxGuid>,
        uid_validity: Option<u32>,
        uid_next: Option<u32>,
        last_renamed_or_created: Option<u64>,
        subscribed: bool,
        last_subscription_change: Option<u64>,
    }
    /// What was deleted, and when; and how names are joined.
    Deletes b'D' {
        hierarchy_sep: Vec<u8>,
        escape_char: Option<Vec<u8>>,
        mailboxes: Option<String>,
        dirs: Option<String>,
        unsubscribes: Option<String>,
    }
    /// Counters of one mailbox.
    Mailbox b'B' {
        mailbox_guid: MailboxGuid,
        uid_validity: u32,
        uid_next: u32,
        messages_count: u32,
        first_recent_uid: u32,
        highest_modseq: u64,
        highest_pvt_modseq: u64,
        mailbox_lost: bool,
        mailbox_ignore: bool,
        /// Hints which headers are cached: sent empty, and not looked at.
        cache_fields: Option<Vec<u8>>,
        have_guids: bool,
        have_save_guids: bool,
        have_only_guid128: bool,
    }
    /// One attribute of a mailbox. With `stream` its value follows as a body.
    Attribute b'A' {
        kind: Vec<u8>,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
        stream: bool,
        deleted: bool,
        last_change: Option<u64>,
        modseq: Option<u64>,
    }
    /// What became of one message.
    Change b'C' {
        /// `s` it is here, `e` it was expunged, `f` it is known and its flags changed.
        kind: Vec<u8>,
        uid: u32,
        guid: Option<Vec<u8>>,
        hdr_hash: Option<Vec<u8>>,
        modseq: Option<u64>,
        pvt_modseq: Option<u64>,
        add_flags: Option<Hex>,
        remove_flags: Option<Hex>,
        final_flags: Option<Hex>,
        keywords_reset: bool,
        keyword_changes: Option<Elements>,
        received_timestamp: Option<Hex>,
        virtual_size: Option<Hex>,
    }
    /// A message that is wanted.
    Request b'R' {
        guid: Option<Vec<u8>>,
        uid: Option<u32>,
    }
    /// A message that was wanted. With `stream` it follows as a body, without it is gone.
    Mail b'M' {
        guid: Option<Vec<u8>>,
        uid: Option<u32>,
        pop3_uidl: Option<Vec<u8>>,
        pop3_order: Option<u32>,
        received_date: Option<u64>,
        saved_date: Option<u64>,
        stream: bool,
    }
    /// The slave is done.
    Finish b'F' {
        error: Option<Vec<u8>>,
        mail_error: Option<u32>,
        require_full_resync: bool,
    }
}

impl Item {
    /// What a reader sees of it in a message about it.
    pub fn tag(&self) -> char {
        char::from(self.give().0)
    }

    /// Says whether a body follows.
    pub(super) fn has_body(&self) -> bool {
        matches!(self, Item::Mail(mail) if mail.stream)
            || matches!(self, Item::Attribute(attribute) if attribute.stream)
    }
}
