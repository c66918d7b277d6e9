//! The journal's export format, read piece by piece as it comes out of a pipe.
//!
//! An entry is a run of fields that ends with an empty line. A field is `NAME=value`, or, when its value holds other
//! bytes than text, `NAME`, its length as 64 bits, little end first, and the bytes. Only the fields that are looked at
//! are kept, and of each at most [`FIELD_BYTES`]: what else comes is passed over without being stored.

use std::mem;

/// No more of a field is kept, in bytes. journald splits lines of programs at 48 KiB.
pub(super) const FIELD_BYTES: usize = 64 << 10;
/// No name of a field is longer.
const NAME_BYTES: usize = 64;

/// One entry: what is looked at of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// `__CURSOR`: where it stands.
    pub(super) cursor: String,
    /// `__REALTIME_TIMESTAMP`: when it was written, in microseconds of Unix time.
    pub(super) micros: u64,
    /// `MESSAGE`.
    pub(super) message: Vec<u8>,
    /// `MESSAGE_ID`.
    pub(super) message_id: String,
    /// `_SYSTEMD_UNIT`: whose process wrote it.
    pub(super) by: String,
    /// `UNIT` or `COREDUMP_UNIT`: which unit it is about.
    pub(super) about: String,
    /// `_PID`.
    pub(super) pid: String,
    /// `N_RESTARTS`.
    pub(super) restarts: Option<u64>,
    /// `HISTORY`, of the reader of pod logs: written before what was read last.
    pub(super) history: bool,
}

impl Entry {
    fn set(&mut self, name: &[u8], value: Vec<u8>) {
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        match name {
            b"__CURSOR" => self.cursor = text(value),
            b"__REALTIME_TIMESTAMP" => self.micros = text(value).parse().unwrap_or_default(),
            b"MESSAGE" => self.message = value,
            b"MESSAGE_ID" => self.message_id = text(value),
            b"_SYSTEMD_UNIT" => self.by = text(value),
            b"UNIT" | b"COREDUMP_UNIT" => self.about = text(value),
            b"_PID" => self.pid = text(value),
            b"N_RESTARTS" => self.restarts = text(value).parse().ok(),
            b"HISTORY" => self.history = true,
            _ => {}
        }
    }
}

/// The fields to ask journalctl for.
pub(super) const FIELDS: &str =
    "MESSAGE,MESSAGE_ID,_SYSTEMD_UNIT,UNIT,COREDUMP_UNIT,_PID,N_RESTARTS";

/// The names that [`Entry`] keeps.
fn is_kept(name: &[u8]) -> bool {
    matches!(
        name,
        b"__CURSOR"
            | b"__REALTIME_TIMESTAMP"
            | b"MESSAGE"
            | b"MESSAGE_ID"
            | b"_SYSTEMD_UNIT"
            | b"UNIT"
            | b"COREDUMP_UNIT"
            | b"_PID"
            | b"N_RESTARTS"
            | b"HISTORY"
    )
}

/// What comes next.
#[derive(Debug, Default)]
enum Expect {
    /// A name, or the end of the entry.
    #[default]
    Name,
    /// The rest of a line of text.
    Text,
    /// Bytes of a length, of which these have come.
    Length([u8; 8], usize),
    /// So many more bytes, and a newline.
    Bytes(u64),
}

/// Takes pieces and gives entries.
#[derive(Debug, Default)]
pub(super) struct Parser {
    expect: Expect,
    name: Vec<u8>,
    value: Vec<u8>,
    entry: Entry,
    /// Whether any field of the entry has come.
    begun: bool,
}

impl Parser {
    /// Takes a piece; calls `each` with every entry that it completes.
    pub(super) fn feed(&mut self, mut piece: &[u8], mut each: impl FnMut(Entry)) {
        while !piece.is_empty() {
            let used = match &mut self.expect {
                Expect::Name => self.name(piece, &mut each),
                Expect::Text => {
                    let end = piece.iter().position(|byte| *byte == b'\n');
                    keep(&self.name, &mut self.value, &piece[..end.unwrap_or(piece.len())]);
                    if end.is_some() {
                        self.done();
                    }
                    end.map_or(piece.len(), |end| end + 1)
                }
                Expect::Length(bytes, have) => {
                    let used = piece.len().min(bytes.len() - *have);
                    bytes[*have..*have + used].copy_from_slice(&piece[..used]);
                    *have += used;
                    if *have == bytes.len() {
                        self.expect = Expect::Bytes(u64::from_le_bytes(*bytes));
                    }
                    used
                }
                Expect::Bytes(0) => {
                    self.done();
                    1
                }
                Expect::Bytes(left) => {
                    let used = piece.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= used as u64;
                    keep(&self.name, &mut self.value, &piece[..used]);
                    used
                }
            };
            piece = &piece[used..];
        }
    }

    fn name(&mut self, piece: &[u8], each: &mut impl FnMut(Entry)) -> usize {
        let end = piece.iter().position(|byte| matches!(byte, b'=' | b'\n'));
        let part = &piece[..end.unwrap_or(piece.len())];
        let room = NAME_BYTES.saturating_sub(self.name.len());
        self.name.extend(&part[..part.len().min(room)]);
        let Some(end) = end else { return piece.len() };
        if piece[end] == b'=' {
            self.expect = Expect::Text;
        } else if self.name.is_empty() {
            if mem::take(&mut self.begun) {
                each(mem::take(&mut self.entry));
            }
        } else {
            self.expect = Expect::Length([0; 8], 0);
        }
        end + 1
    }

    fn done(&mut self) {
        self.begun = true;
        self.entry.set(&self.name, mem::take(&mut self.value));
        self.name.clear();
        self.expect = Expect::Name;
    }
}

fn keep(name: &[u8], value: &mut Vec<u8>, part: &[u8]) {
    if is_kept(name) {
        let room = FIELD_BYTES.saturating_sub(value.len());
        value.extend(&part[..part.len().min(room)]);
    }
}

/// A field as it is written.
pub(super) fn write(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend((value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a real journal, cut down to three fields and one that nobody asked for.
    const REAL: &[u8] = b"__CURSOR=s=b9d5;i=1f;b=6f1e;m=2f5a;t=6448;x=d3\n__REALTIME_TIMESTAMP=1764111111000001\n\
        _TRANSPORT=stdout\nMESSAGE=Started k3s.\nUNIT=k3s.service\n_PID=1\nN_RESTARTS=7\n\n\
        __CURSOR=s=b9d5;i=20\nMESSAGE\n\x0b\0\0\0\0\0\0\0two\n\xfflines\n\n_SYSTEMD_UNIT=k3s.service\n\n";

    fn parse(pieces: &[&[u8]]) -> Vec<Entry> {
        let (mut parser, mut entries) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, |entry| entries.push(entry));
        }
        entries
    }

    #[test]
    fn an_entry_is_what_stands_before_an_empty_line_and_bytes_have_a_length() {
        let entries = parse(&[REAL]);
        assert_eq!(entries.len(), 2);
        let first = &entries[0];
        assert_eq!(
            (first.micros, &*first.about, &*first.pid),
            (1_764_111_111_000_001, "k3s.service", "1")
        );
        assert_eq!(
            (&*first.cursor, first.restarts),
            ("s=b9d5;i=1f;b=6f1e;m=2f5a;t=6448;x=d3", Some(7))
        );
        assert_eq!(entries[1].message, b"two\n\xfflines\n");
        assert_eq!(entries[1].by, "k3s.service");
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_follows_is_read() {
        let mut long = Vec::new();
        write(&mut long, "MESSAGE", &vec![b'x'; 5 << 20]);
        write(&mut long, "COREDUMP", &vec![b'\n'; 5 << 20]);
        write(&mut long, &"N".repeat(500), b"x");
        write(&mut long, "UNIT", b"k3s.service");
        long.push(b'\n');
        let entries = parse(&[&long]);
        assert_eq!((entries.len(), entries[0].message.len()), (1, FIELD_BYTES));
        assert_eq!(entries[0].about, "k3s.service");
    }

    #[test]
    fn empty_lines_between_entries_are_none() {
        assert_eq!(parse(&[b"\n\n\nMESSAGE=a\n\n\n\n"]).len(), 1);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_pieces_end(cuts in prop::collection::vec(0..REAL.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, REAL.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &REAL[w[0]..w[1]]).collect();
            prop_assert_eq!(parse(&pieces), parse(&[REAL]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(&[&bytes]);
        }

        #[test]
        fn what_is_written_is_read(message in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut text = Vec::new();
            write(&mut text, "MESSAGE", &message);
            text.push(b'\n');
            prop_assert_eq!(&parse(&[&text])[0].message, &message);
        }
    }
}
