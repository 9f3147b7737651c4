//! Bytes to items and back: the version line, the tables, the lines, and the bodies behind them.

use std::collections::BTreeMap;

use bytes::{Buf, BytesMut};

use super::body;
use super::items::{Item, TABLES, take};
use super::{COLUMNS_MAX, LINE_BYTES_MAX, MINOR, text};
use crate::ProtoError;

/// The line that begins a stream.
const NAME: &str = "VERSION\tdsync\t3\t";
/// Columns of the item that stands only inside of `B`.
const CACHE_COLUMNS: &[&str] = &["name", "decision", "last_used"];
/// Lines of a peer's tables that are read at most.
const TABLES_MAX: usize = 100;

/// What a peer sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first: its minor version.
    Version(u32),
    Item(Item),
    /// The next piece of the body of the item before.
    Body(BytesMut),
    BodyEnd,
}

enum Phase {
    Version,
    Tables(usize),
    Lines,
    Body(body::Reader),
}

/// Reads a stream from its first byte.
pub struct Decoder {
    phase: Phase,
    minor: u32,
    /// For each tag: which of our columns each of the peer's columns is.
    tables: BTreeMap<u8, Vec<Option<usize>>>,
    /// Bytes of the current line that are known to hold no end.
    searched: usize,
    /// The lines that were read, if they are to be recorded.
    recorded: Option<Vec<u8>>,
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder { phase: Phase::Version, minor: 0, tables: BTreeMap::new(), searched: 0, recorded: None }
    }

    /// From now on keeps the lines that are read, until they are [taken](Self::recorded).
    pub fn record(&mut self) {
        self.recorded = Some(Vec::new());
    }

    /// Takes the lines that were read since the last time, each with its end.
    pub fn recorded(&mut self) -> Vec<u8> {
        self.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Says whether a body is under way: nothing but a body's end may be said then, and nothing is heard.
    pub fn in_body(&self) -> bool {
        matches!(self.phase, Phase::Body(_))
    }

    /// Takes the next event off the front of `input`; `None` if it is not all there yet.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, ProtoError> {
        loop {
            if let Phase::Body(reader) = &mut self.phase {
                return Ok(reader.read(input).map(|piece| match piece {
                    body::Piece::Bytes(bytes) => Event::Body(bytes),
                    body::Piece::End => {
                        self.phase = Phase::Lines;
                        Event::BodyEnd
                    }
                }));
            }
            let Some(line) = self.line(input)? else { return Ok(None) };
            if let Some(event) = self.take_line(&line)? {
                return Ok(Some(event));
            }
        }
    }

    fn line(&mut self, input: &mut BytesMut) -> Result<Option<BytesMut>, ProtoError> {
        let found = memchr::memchr(b'\n', &input[self.searched.min(input.len())..]);
        let length = found.map_or(input.len(), |at| self.searched + at);
        if length > LINE_BYTES_MAX {
            let text = format!("a line of the peer is longer than {LINE_BYTES_MAX} bytes");
            return Err(ProtoError::Malformed(text));
        }
        if found.is_none() {
            self.searched = length;
            return Ok(None);
        }
        self.searched = 0;
        let line = input.split_to(length);
        input.advance(1);
        if let Some(recorded) = &mut self.recorded {
            recorded.extend_from_slice(&line);
            recorded.push(b'\n');
        }
        Ok(Some(line))
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Event>, ProtoError> {
        match &mut self.phase {
            Phase::Version => {
                self.minor = version(line)?;
                self.phase = Phase::Tables(0);
                Ok(Some(Event::Version(self.minor)))
            }
            Phase::Tables(_) if line == b"." => {
                self.check_tables()?;
                self.phase = Phase::Lines;
                Ok(None)
            }
            Phase::Tables(seen) => {
                *seen += 1;
                if *seen > TABLES_MAX {
                    return Err(ProtoError::Malformed("the peer has too many tables".into()));
                }
                self.take_table(line)?;
                Ok(None)
            }
            Phase::Lines | Phase::Body(_) => self.item(line).map(|item| Some(Event::Item(item))),
        }
    }

    fn take_table(&mut self, line: &[u8]) -> Result<(), ProtoError> {
        let Some((tag, columns)) = line.split_first() else {
            return Err(ProtoError::Malformed("the peer has a table without a name".into()));
        };
        let names: Vec<_> =
            text::split(columns).take(COLUMNS_MAX + 1).map(Option::unwrap_or_default).collect();
        if names.len() > COLUMNS_MAX {
            let text = format!("the peer's table {:?} has too many columns", char::from(*tag));
            return Err(ProtoError::Malformed(text));
        }
        let Some((_, ours)) = TABLES.iter().find(|(known, _)| known == tag) else {
            if *tag == b'c' {
                self.tables.insert(*tag, Vec::new());
            }
            return Ok(());
        };
        let known = names.iter().map(|name| ours.iter().position(|(known, _)| known.as_bytes() == name));
        self.tables.insert(*tag, known.collect());
        Ok(())
    }

    /// Every item that the peer's version knows has a table with all that must be in it.
    fn check_tables(&self) -> Result<(), ProtoError> {
        for (tag, columns) in TABLES {
            let since = match tag {
                b'A' => 1,
                b'F' => 3,
                _ => 0,
            };
            let Some(table) = self.tables.get(tag) else {
                if self.minor < since {
                    continue;
                }
                let text = format!("the peer's table {:?} is missing", char::from(*tag));
                return Err(ProtoError::Malformed(text));
            };
            for (i, (column, required)) in columns.iter().enumerate() {
                if *required && !table.contains(&Some(i)) {
                    let tag = char::from(*tag);
                    let text = format!("the peer's table {tag:?} is without the column {column}");
                    return Err(ProtoError::Malformed(text));
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, line: &[u8]) -> Result<Item, ProtoError> {
        match line {
            b"." => return Ok(Item::End),
            b"X" => return Ok(Item::Close),
            _ => {}
        }
        let Some((tag, rest)) = line.split_first() else {
            return Err(ProtoError::Malformed("the peer sends an empty line".into()));
        };
        let ours = TABLES.iter().find(|(known, _)| known == tag).map_or(0, |(_, columns)| columns.len());
        let mut values = vec![None; ours];
        if let Some(table) = self.tables.get(tag) {
            for (column, value) in table.iter().zip(text::split(rest)) {
                if let Some(value_at) = column.and_then(|column| values.get_mut(column)) {
                    *value_at = value;
                }
            }
        }
        let item = take(*tag, values)?;
        if item.has_body() {
            self.phase = Phase::Body(body::Reader::new());
        }
        Ok(item)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

fn version(line: &[u8]) -> Result<u32, ProtoError> {
    let line = String::from_utf8_lossy(line);
    let minor = line.strip_prefix(NAME).and_then(|minor| minor.parse().ok());
    minor.ok_or_else(|| {
        let shown: String = line.chars().take(80).collect();
        ProtoError::OtherProtocol(format!("it says {:?}, and not {NAME:?} and a number", shown))
    })
}

/// Writes a stream.
#[derive(Default)]
pub struct Encoder {
    line: Vec<u8>,
}

impl Encoder {
    /// Appends what comes before the first item.
    pub fn start(&mut self, output: &mut BytesMut) {
        output.extend_from_slice(format!("{NAME}{MINOR}\n").as_bytes());
        let mut table = |tag: u8, columns: &mut dyn Iterator<Item = &str>| {
            let columns: Vec<&str> = columns.collect();
            output.extend_from_slice(&[tag]);
            output.extend_from_slice(columns.join("\t").as_bytes());
            output.extend_from_slice(b"\n");
        };
        for (tag, columns) in TABLES {
            table(*tag, &mut columns.iter().map(|(name, _)| *name));
        }
        table(b'c', &mut CACHE_COLUMNS.iter().copied());
        output.extend_from_slice(b".\n");
    }

    /// Appends one item. What has a body is followed by all of it ([`body::Writer`]) before the next one.
    pub fn item(&mut self, item: &Item, output: &mut BytesMut) {
        let (tag, values) = item.give();
        self.line.clear();
        self.line.push(tag);
        text::join(&values, &mut self.line);
        self.line.push(b'\n');
        output.extend_from_slice(&self.line);
    }
}
