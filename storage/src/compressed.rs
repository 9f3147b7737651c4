//! Mails that Dovecot's zlib plugin compressed, and those that its mail_crypt plugin encrypted.
//!
//! Reads only. Such a file has no other mark than its first bytes: [`form`] tells, [`open`] gives the mail itself.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;

use crate::{Result, StorageError};

/// Bytes at the beginning of a mail that tell its form.
pub const MAGIC_BYTES: usize = 32;
/// Largest mail that is made out of compressed data, unless the caller knows better.
pub const SIZE_MAX: u64 = 8 << 30;

const LZ4_MAGIC: &[u8] = b"Dovecot-LZ4\x0d\x2a\x9b\xc5";
/// Largest chunk of LZ4, compressed or not: Dovecot writes 64 KiB and reads up to this.
const LZ4_CHUNK_BYTES_MAX: u32 = 1 << 20;
/// Largest window of zstd, as a power of 2; what its highest level writes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 64 << 10;

/// An algorithm of the zlib plugin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    Gzip,
    Bzip2,
    Zstd,
    /// In a framing of Dovecot's own.
    Lz4,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
        }
    }
}

/// What the first bytes of a mail say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Plain,
    Compressed(Compression),
    /// Only Dovecot can read it: why.
    Unsupported(&'static str),
}

/// Tells the form of a mail by its first bytes, [`MAGIC_BYTES`] of them or all there are.
///
/// These are the magic bytes that Dovecot goes by, whatever the plugins are that are on: it would show a client nothing
/// but an error for a plain mail that begins so. We go one step further where a magic is short: a plain mail whose
/// next bytes cannot follow in gzip or zstd is read as it is.
pub fn form(start: &[u8]) -> Form {
    let bzip2 = start.starts_with(b"BZh")
        && matches!(start.get(3), Some(b'1'..=b'9'))
        && start[4..].starts_with(b"1AY&SY");
    match start {
        // Method deflate, no reserved flags (RFC 1952, 2.3).
        [0x1f, 0x8b, 8, flags, ..] if flags & 0xe0 == 0 => Form::Compressed(Compression::Gzip),
        // The id of a dictionary follows, which is nowhere to be found.
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] if descriptor & 8 == 0 && descriptor & 3 != 0 => {
            Form::Unsupported("the mail is compressed with a dictionary")
        }
        // No reserved bit (RFC 8878, 3.1.1.1.1).
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] if descriptor & 8 == 0 => {
            Form::Compressed(Compression::Zstd)
        }
        _ if bzip2 => Form::Compressed(Compression::Bzip2),
        _ if start.starts_with(LZ4_MAGIC) => Form::Compressed(Compression::Lz4),
        _ if start.starts_with(b"\xfd7zXZ\0") => Form::Unsupported("the mail is compressed with xz"),
        _ if start.starts_with(b"CRYPTED\x03\x07") => {
            Form::Unsupported("the mail is encrypted by Dovecot's plugin mail_crypt")
        }
        _ => Form::Plain,
    }
}

/// A mail as it was before it was compressed.
pub struct Opened {
    /// Damage is an error of the kind `InvalidData`, and so is a mail of more bytes than allowed.
    pub reader: Box<dyn Read + Send>,
    /// `None`: the reader gives the bytes as they are stored.
    pub compression: Option<Compression>,
}

/// Opens a mail whatever its form. `path` is for the error; `size_max` bounds what compressed data may become.
pub fn open(mut stored: impl Read + Send + 'static, path: &Path, size_max: u64) -> Result<Opened> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    let read = Read::by_ref(&mut stored).take(MAGIC_BYTES as u64).read_to_end(&mut start);
    read.map_err(StorageError::io(path))?;
    let form = form(&start);
    let stored = Cursor::new(start).chain(stored);
    match form {
        Form::Plain => Ok(Opened { reader: Box::new(stored), compression: None }),
        Form::Unsupported(what) => Err(StorageError::Unsupported { path: path.to_owned(), what }),
        Form::Compressed(compression) => {
            let decoder = decoder(compression, stored).map_err(StorageError::io(path))?;
            let reader = Box::new(Bounded { decoder, compression, left: size_max, failed: false });
            Ok(Opened { reader, compression: Some(compression) })
        }
    }
}

/// Fails if [`open`] could not read a mail whose stored form begins with these bytes.
pub fn check(start: &[u8], path: &Path) -> Result<()> {
    match form(start) {
        Form::Plain | Form::Compressed(_) => Ok(()),
        Form::Unsupported(what) => Err(StorageError::Unsupported { path: path.to_owned(), what }),
    }
}

/// The same of a file. What is gone or no file by now shows when it is opened.
pub fn check_file(path: &Path) -> Result<()> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else { return Ok(()) };
    let mut start = [0; MAGIC_BYTES];
    let length = file.read_at(&mut start, 0).unwrap_or(0);
    check(&start[..length], path)
}

fn decoder<R: Read + Send + 'static>(
    compression: Compression,
    stored: Chain<Cursor<Vec<u8>>, R>,
) -> io::Result<Box<dyn Read + Send>> {
    let stored = BufReader::with_capacity(BUFFER_BYTES, stored);
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(stored)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(stored)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(stored)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Lz4 => Box::new(Lz4Decoder::new(stored)?),
    })
}

/// Ends with an error where the data are damaged, or become more than they may.
struct Bounded {
    decoder: Box<dyn Read + Send>,
    compression: Compression,
    left: u64,
    failed: bool,
}

impl Bounded {
    fn damaged(&mut self, what: impl std::fmt::Display) -> io::Error {
        // What a decoder does after an error is its own affair: it is not asked again.
        self.failed = true;
        let name = self.compression.name();
        io::Error::new(io::ErrorKind::InvalidData, format!("the {name} data are damaged: {what}"))
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(self.damaged("reading ended with an error before"));
        }
        match self.decoder.read(buffer) {
            Ok(length) => match self.left.checked_sub(length as u64) {
                Some(left) => {
                    self.left = left;
                    Ok(length)
                }
                None => Err(self.damaged("they become larger than the mail may be")),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted || error.raw_os_error().is_some() => {
                Err(error)
            }
            Err(error) => Err(self.damaged(error)),
        }
    }
}

/// Reads Dovecot's framing of LZ4 blocks: the magic, the largest size of a chunk when it is decompressed, and chunks
/// with their size when compressed, all sizes of 4 bytes and big-endian.
///
/// There is no end mark: a file that was cut between two chunks shows that only by the size of the mail.
struct Lz4Decoder<R> {
    stored: R,
    block: Vec<u8>,
    chunk: Vec<u8>,
    chunk_max: usize,
    given: usize,
}

impl<R: BufRead> Lz4Decoder<R> {
    fn new(mut stored: R) -> io::Result<Lz4Decoder<R>> {
        let mut magic = [0; LZ4_MAGIC.len()];
        stored.read_exact(&mut magic)?;
        let mut size = [0; 4];
        let chunk_max = match stored.read_exact(&mut size) {
            Ok(()) => u32::from_be_bytes(size),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        if !(1..=LZ4_CHUNK_BYTES_MAX).contains(&chunk_max) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the lz4 data are damaged: impossible header",
            ));
        }
        let chunk_max = chunk_max as usize;
        Ok(Lz4Decoder { stored, block: Vec::new(), chunk: Vec::new(), chunk_max, given: 0 })
    }

    /// Makes the next chunk. `false`: there is none.
    fn fill(&mut self) -> io::Result<bool> {
        let damaged = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if self.stored.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut size = [0; 4];
        self.stored.read_exact(&mut size)?;
        let size = u32::from_be_bytes(size);
        if !(1..=LZ4_CHUNK_BYTES_MAX).contains(&size) {
            return damaged("impossible size of a chunk".to_owned());
        }
        self.block.resize(size as usize, 0);
        self.stored.read_exact(&mut self.block)?;
        self.chunk.resize(self.chunk_max, 0);
        self.given = 0;
        match lz4_flex::block::decompress_into(&self.block, &mut self.chunk) {
            Ok(0) => damaged("an empty chunk".to_owned()),
            Ok(length) => {
                self.chunk.truncate(length);
                Ok(true)
            }
            Err(error) => damaged(error.to_string()),
        }
    }
}

impl<R: BufRead> Read for Lz4Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || (self.given == self.chunk.len() && !self.fill()?) {
            return Ok(0);
        }
        let length = buffer.len().min(self.chunk.len() - self.given);
        buffer[..length].copy_from_slice(&self.chunk[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Bzip2, Compression::Zstd, Compression::Lz4];

    fn compress(compression: Compression, mail: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(mail).expect("written");
                encoder.finish().expect("written")
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
                encoder.write_all(mail).expect("written");
                encoder.finish().expect("written")
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("made");
                encoder.include_checksum(true).expect("set");
                encoder.write_all(mail).expect("written");
                encoder.finish().expect("written")
            }
            Compression::Lz4 => {
                let mut bytes = [LZ4_MAGIC, &65_536u32.to_be_bytes()].concat();
                for chunk in mail.chunks(65_536) {
                    let block = lz4_flex::block::compress(chunk);
                    bytes.extend_from_slice(&(block.len() as u32).to_be_bytes());
                    bytes.extend_from_slice(&block);
                }
                bytes
            }
        }
    }

    fn read(bytes: &[u8], size_max: u64) -> Result<Vec<u8>, (u8, String)> {
        let told = |error: StorageError| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            (error.status(), format!("{error}: {}", cause.unwrap_or_default()))
        };
        let path = Path::new("u.1");
        let mut mail = Vec::new();
        let mut opened = open(Cursor::new(bytes.to_vec()), path, size_max).map_err(told)?;
        match opened.reader.read_to_end(&mut mail) {
            Ok(_) => Ok(mail),
            Err(error) => {
                assert!(opened.reader.read(&mut [0; 10]).is_err(), "an error stays one");
                Err(told(StorageError::io(path)(error)))
            }
        }
    }

    fn long_mail() -> Vec<u8> {
        let mut mail = b"Subject: long\n\n".to_vec();
        (0..40_000u32).for_each(|n| {
            mail.extend_from_slice(format!("line {}\n", n.wrapping_mul(2_654_435_761)).as_bytes())
        });
        mail
    }

    #[test]
    fn every_compression_gives_the_mail_back() {
        for compression in ALL {
            for mail in [b"Subject: short\n\nText.\n".to_vec(), long_mail()] {
                let bytes = compress(compression, &mail);
                assert_eq!(form(&bytes), Form::Compressed(compression));
                assert!(read(&bytes, mail.len() as u64) == Ok(mail.clone()), "{compression:?}");
                let (status, text) = read(&bytes, mail.len() as u64 - 1).expect_err("too large");
                assert_eq!(status, 65, "{text}");
                assert!(text.contains("larger than the mail may be"), "{text}");
            }
        }
        let twice = [compress(Compression::Gzip, b"one "), compress(Compression::Gzip, b"two")].concat();
        assert_eq!(read(&twice, SIZE_MAX).expect("reads"), b"one two");
    }

    #[test]
    fn a_mail_that_was_cut_is_an_error() {
        let mail = b"Subject: short\n\nText, text, text.\n";
        for compression in ALL {
            let bytes = compress(compression, mail);
            for length in 20..bytes.len() {
                let cut = read(&bytes[..length], SIZE_MAX);
                // No end mark: the size of the mail tells.
                let fine = compression == Compression::Lz4 && length == LZ4_MAGIC.len() + 4;
                assert!(
                    cut.as_ref().is_err_and(|(status, _)| *status == 65) || fine,
                    "{compression:?} {length} {cut:?}"
                );
            }
        }
    }

    #[test]
    fn a_mail_with_a_flipped_bit_is_an_error_or_the_same() {
        let mail = b"Subject: short\n\nText, text, text.\n";
        for compression in [Compression::Gzip, Compression::Bzip2, Compression::Zstd] {
            let bytes = compress(compression, mail);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                match read(&flipped, SIZE_MAX) {
                    Ok(read) => assert!(read == mail || read == flipped, "{compression:?} {bit}"),
                    Err((status, text)) => assert_eq!(status, 65, "{text}"),
                }
            }
        }
    }

    #[test]
    fn impossible_sizes_take_no_memory() {
        for (chunk_max, size) in
            [(0, 5), (u32::MAX, 5), (1 << 16, 0), (1 << 16, u32::MAX), (1 << 16, 1 << 20)]
        {
            let bytes = [LZ4_MAGIC, &u32::to_be_bytes(chunk_max), &u32::to_be_bytes(size), b"abc"].concat();
            let (status, text) = read(&bytes, SIZE_MAX).expect_err("impossible");
            assert_eq!(status, 65, "{text}");
        }
        // Window of 2^41 bytes.
        let (status, text) = read(b"\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00", SIZE_MAX).expect_err("impossible");
        assert_eq!(status, 65, "{text}");
    }

    #[test]
    fn what_only_begins_alike_is_plain() {
        let plain: [&[u8]; 9] = [
            b"",
            b"\x1f",
            b"\x1f\x8b",
            b"\x1f\x8b text",
            b"BZh",
            b"BZhurry up",
            b"BZh91AY&S",
            b"\x28\xb5\x2f\xfd",
            b"\x28\xb5\x2f\xfdhm",
        ];
        for mail in plain {
            assert_eq!(form(mail), Form::Plain, "{mail:?}");
            assert_eq!(read(mail, 1).expect("reads"), mail);
        }
        let long = [b"\x1f\x8b plain mail\n", &*long_mail()].concat();
        assert_eq!(read(&long, 1).expect("reads"), long);
    }

    #[test]
    fn what_only_dovecot_can_read_is_said_with_its_name() {
        for (mail, text) in [(&b"CRYPTED\x03\x07\x02rest"[..], "encrypted"), (b"\xfd7zXZ\0\0\x04", "xz")] {
            let (status, told) = read(mail, SIZE_MAX).expect_err("unsupported");
            assert_eq!(status, 65);
            assert!(told.starts_with("u.1: ") && told.contains(text), "{told}");
        }
    }
}
