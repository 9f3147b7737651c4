//! The configuration parser: files, includes and sections, all within limits.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use tracing::{debug, warn};

use super::{
    error::{ConfError, Place},
    include,
    line::{self, Line},
    tree::{Entry, Section, Value},
};

/// Deepest nesting of sections.
const SECTION_DEPTH_MAX: usize = 32;
/// Deepest nesting of included files.
const INCLUDE_DEPTH_MAX: usize = 16;
/// Most files of one configuration, each inclusion counted.
const FILES_MAX: usize = 1000;
/// Most bytes of one configuration, all files together.
const BYTES_MAX: usize = 16 << 20;

/// Reads a configuration file with everything it includes.
pub(super) fn load(path: &Path) -> Result<Section, ConfError> {
    let place = Place::Line { file: Arc::new(path.to_owned()), line: 1 };
    let mut parser = Parser { stack: vec![Section::new("", "", place)], files: 0, bytes: 0 };
    let text = parser.read(path).map_err(|source| ConfError::Io { path: path.to_owned(), source })?;
    parser.text(path, &text, 0)?;
    Ok(parser.finish())
}

/// Reads configuration text as if it stood in `path`.
#[cfg(any(test, feature = "sql", feature = "ldap"))]
pub(crate) fn parse(path: &Path, text: &str) -> Result<Section, ConfError> {
    let place = Place::Line { file: Arc::new(path.to_owned()), line: 1 };
    let mut parser = Parser { stack: vec![Section::new("", "", place)], files: 0, bytes: 0 };
    parser.text(path, text, 0)?;
    Ok(parser.finish())
}

/// Reads at most `limit` bytes of a file; more is an error.
pub(crate) fn read_limited(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("file is over {limit} bytes")));
    }
    Ok(bytes)
}

struct Parser {
    /// The open sections, outermost first; never empty.
    stack: Vec<Section>,
    files: usize,
    bytes: usize,
}

impl Parser {
    fn finish(mut self) -> Section {
        self.stack.swap_remove(0)
    }

    fn read(&mut self, path: &Path) -> io::Result<String> {
        self.files += 1;
        let bytes = read_limited(path, BYTES_MAX - self.bytes)?;
        self.bytes += bytes.len();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads the lines of one file; sections it opens it must close.
    fn text(&mut self, path: &Path, text: &str, depth: usize) -> Result<(), ConfError> {
        let file = Arc::new(path.to_owned());
        let base = self.stack.len();
        let mut full = String::new();
        let mut start = 1;
        let mut number = 0;
        for raw in text.trim_start_matches('\u{feff}').lines() {
            number += 1;
            if full.is_empty() {
                start = number;
            }
            let (part, ambiguous) = line::without_comment(raw);
            if ambiguous {
                warn!(file = %file.display(), line = number, "\"#\" inside a value begins a comment; quote it");
            }
            let part = part.trim();
            if let Some(head) = part.strip_suffix('\\') {
                full.push_str(head.trim_end());
                full.push(' ');
                continue;
            }
            full.push_str(part);
            let place = Place::Line { file: Arc::clone(&file), line: start };
            let said = line::parse(&full).map_err(|what| ConfError::Syntax { place: place.clone(), what })?;
            full.clear();
            self.line(said, place, base, depth)?;
        }
        let place = Place::Line { file, line: start };
        if !full.trim().is_empty() {
            return Err(ConfError::Syntax { place, what: "file ends after \"\\\"".to_owned() });
        }
        if self.stack.len() > base {
            let open = self.top();
            let what = format!("section {:?} is not closed", open.kind);
            return Err(ConfError::Syntax { place: open.place.clone(), what });
        }
        Ok(())
    }

    fn top(&mut self) -> &mut Section {
        self.stack.last_mut().expect("the root section is never popped")
    }

    fn line(&mut self, said: Line, place: Place, base: usize, depth: usize) -> Result<(), ConfError> {
        let syntax = |what: &str| ConfError::Syntax { place: place.clone(), what: what.to_owned() };
        match said {
            Line::Empty => {}
            Line::Text(key, text) => self.top().entries.push(Entry { key, value: Value::Text(text), place }),
            Line::File(key, path) => self.top().entries.push(Entry { key, value: Value::File(path), place }),
            Line::Variable(key, text) => {
                let text = self.with_settings(&text);
                self.top().entries.push(Entry { key, value: Value::Text(text), place });
            }
            Line::Open { kind, title, closed } => {
                if self.stack.len() > SECTION_DEPTH_MAX {
                    return Err(syntax("sections are nested too deeply"));
                }
                self.stack.push(Section::new(&kind, &title, place));
                if closed {
                    self.close();
                }
            }
            Line::Close if self.stack.len() > base => self.close(),
            Line::Close => return Err(syntax("\"}\" closes nothing")),
            Line::Include { glob, tolerant } => {
                if depth >= INCLUDE_DEPTH_MAX {
                    return Err(syntax("files include each other too deeply"));
                }
                let dir = place.dir().unwrap_or(Path::new(""));
                for path in include::expand(dir, &glob) {
                    self.include(&path, tolerant, &place, depth)?;
                }
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Some(child) = self.stack.pop() {
            self.top().adopt(child);
        }
    }

    fn include(&mut self, path: &Path, tolerant: bool, place: &Place, depth: usize) -> Result<(), ConfError> {
        if self.files >= FILES_MAX {
            let what = format!("over {FILES_MAX} files are included");
            return Err(ConfError::Syntax { place: place.clone(), what });
        }
        match self.read(path) {
            Ok(text) => self.text(path, &text, depth + 1),
            Err(error) if tolerant => {
                debug!(path = %path.display(), %error, "not included");
                Ok(())
            }
            Err(source) => Err(ConfError::File {
                place: place.clone(),
                setting: "!include".to_owned(),
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Replaces each word `$setting` or `$SET:setting` by the value so far, `$ENV:NAME` by the environment's.
    ///
    /// Other dollars stay: they are parts of password hashes.
    fn with_settings(&self, text: &str) -> String {
        if !text.contains('$') {
            return text.to_owned();
        }
        let resolve = |word: &str| -> Option<String> {
            let name = word.strip_prefix('$')?;
            if let Some(name) = name.strip_prefix("ENV:") {
                return Some(std::env::var(name).unwrap_or_default());
            }
            let name = name.strip_prefix("SET:").unwrap_or(name);
            let here = self.stack.last().and_then(|section| section.text(name));
            here.or_else(|| self.stack.first()?.text(name)).map(str::to_owned)
        };
        let mut out = String::with_capacity(text.len());
        for (at, word) in text.split(' ').enumerate() {
            if at > 0 {
                out.push(' ');
            }
            match resolve(word) {
                // A value that doubles on each of many lines must not fill the memory.
                Some(value) if out.len() + value.len() <= 1 << 16 => out.push_str(&value),
                _ => out.push_str(word),
            }
        }
        out
    }
}
