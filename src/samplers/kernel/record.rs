//! One record of the kernel log, as `/dev/kmsg` hands it out.
//!
//! A record is `prefix,sequence,microseconds,flags[,key=value…];text`, then lines of a dictionary
//! that begin with a blank. Everything comes from outside, and below `--path.rootfs` from a plain
//! file, so nothing here trusts its input: a record is at most [`MAX_BYTES`] long, what does not
//! parse is a [`Malformed`], and no input makes this panic.

/// The longest record that is parsed, in bytes. The kernel's own limit was 8192 and is 2048 now.
pub(super) const MAX_BYTES: usize = 16 * 1024;

/// Dictionary lines looked at in one record; drivers write two.
const MAX_DICTIONARY_LINES: usize = 16;

/// Bytes kept of a dictionary value; the names in there are short.
const MAX_VALUE_BYTES: usize = 128;

/// Who wrote a record: 0 is the kernel itself, and user space cannot write it.
pub(super) const FACILITY_KERNEL: u64 = 0;

/// The facility of system daemons, journald among them.
pub(super) const FACILITY_DAEMON: u64 = 5;

/// One parsed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The syslog facility.
    pub(super) facility: u64,
    /// The number of the record, which grows by one from boot.
    pub(super) sequence: u64,
    /// Microseconds of the kernel's log clock, which starts at boot and stops in suspend.
    pub(super) micros: u64,
    /// The message with its escapes undone; it may hold several lines.
    pub(super) text: String,
    /// `SUBSYSTEM` of the dictionary (`scsi`).
    pub(super) subsystem: Option<String>,
    /// `DEVICE` of the dictionary (`+scsi:2:0:0:0`, `b8:0`).
    pub(super) device: Option<String>,
}

/// Why a record is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Longer than [`MAX_BYTES`].
    #[error("the record is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// No `;` ends the head.
    #[error("the record has no end of its head")]
    NoHead,
    /// Fewer than three fields, or one of them is not a number.
    #[error("the head of the record is not three numbers")]
    BadHead,
}

/// Parses one record.
///
/// # Errors
///
/// When the head is missing or is not made of numbers, and when the record is too long. The text
/// itself is never an error: bytes that are not UTF-8 become U+FFFD.
pub(super) fn parse(bytes: &[u8]) -> Result<Record, Malformed> {
    if bytes.len() > MAX_BYTES {
        return Err(Malformed::TooLong);
    }
    let mut lines = bytes.split(|&b| b == b'\n');
    let first = lines.next().unwrap_or_default();
    // The text may hold any number of semicolons; extra fields of the head hold none.
    let end = first.iter().position(|&b| b == b';').ok_or(Malformed::NoHead)?;
    let (head, text) = (&first[..end], &first[end + 1..]);

    // Kernel 3.5 has no flags, later ones add fields (`caller=T274`): three are enough.
    let mut fields = head.split(|&b| b == b',');
    let mut number = || fields.next().and_then(number).ok_or(Malformed::BadHead);
    let (prefix, sequence, micros) = (number()?, number()?, number()?);

    let mut record = Record {
        facility: prefix >> 3,
        sequence,
        micros,
        text: unescape(text),
        subsystem: None,
        device: None,
    };
    for line in lines.take(MAX_DICTIONARY_LINES) {
        if let Some(value) = line.strip_prefix(b" SUBSYSTEM=") {
            record.subsystem = Some(dictionary_value(value));
        } else if let Some(value) = line.strip_prefix(b" DEVICE=") {
            record.device = Some(dictionary_value(value));
        }
    }
    Ok(record)
}

/// A decimal number without sign, blank or overflow.
fn number(field: &[u8]) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0_u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

fn dictionary_value(value: &[u8]) -> String {
    unescape(&value[..value.len().min(MAX_VALUE_BYTES)])
}

/// Undoes `\xNN`, which stands for control characters, backslashes and all that is not ASCII.
/// A backslash that begins no such escape stands for itself.
fn unescape(text: &[u8]) -> String {
    if !text.contains(&b'\\') {
        return String::from_utf8_lossy(text).into_owned();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if let [b'\\', b'x', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = after;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_error_is_read_as_the_kernel_wrote_it() {
        let record = parse(
            b"3,2048,109441230,-;I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x800 \
              phys_seg 1 prio class 2\n",
        )
        .unwrap();
        assert_eq!((record.facility, record.sequence, record.micros), (0, 2048, 109_441_230));
        assert!(record.text.starts_with("I/O error, dev sda, sector 2048 op 0x1:(WRITE)"));
        assert!(record.text.ends_with("prio class 2"));
        assert_eq!((record.subsystem, record.device), (None, None));
    }

    #[test]
    fn unknown_fields_are_skipped_and_the_dictionary_is_kept() {
        let record = parse(
            b"6,1339,5140900,-,caller=T274;sd 2:0:0:0: [sda] tag#23 FAILED Result: \
              hostbyte=DID_OK driverbyte=DRIVER_OK cmd_age=0s\n SUBSYSTEM=scsi\n \
              DEVICE=+scsi:2:0:0:0\n",
        )
        .unwrap();
        assert!(record.text.starts_with("sd 2:0:0:0: [sda] tag#23 FAILED"));
        assert!(record.text.ends_with("cmd_age=0s"));
        assert_eq!(record.subsystem.as_deref(), Some("scsi"));
        assert_eq!(record.device.as_deref(), Some("+scsi:2:0:0:0"));
    }

    #[test]
    fn an_escaped_newline_makes_two_lines_of_one_record() {
        let record = parse(
            b"2,2101,119000000,-;md/raid1:md0: Disk failure on sdb1, disabling \
              device.\\x0amd/raid1:md0: Operation continuing on 1 devices.\n",
        )
        .unwrap();
        let lines: Vec<_> = record.text.lines().collect();
        assert_eq!(
            lines,
            [
                "md/raid1:md0: Disk failure on sdb1, disabling device.",
                "md/raid1:md0: Operation continuing on 1 devices."
            ]
        );
    }

    #[test]
    fn a_fragment_begins_wherever_it_begins() {
        let record = parse(b"6,3000,1,c;,task=etcd,pid=812,uid=0\n").unwrap();
        assert_eq!(record.text, ",task=etcd,pid=812,uid=0");
    }

    #[test]
    fn a_character_device_is_a_device_too() {
        let record = parse(
            b"4,77,31777624,-,caller=C3;nvme nvme0: I/O tag 641 (c281) opcode 0x1 (I/O Cmd) QID 8 \
              timeout, aborting req_op:WRITE(1) size:4096\n SUBSYSTEM=nvme\n DEVICE=c241:0\n",
        )
        .unwrap();
        assert_eq!(record.device.as_deref(), Some("c241:0"));
    }

    #[test]
    fn the_facility_tells_who_wrote_it() {
        for (bytes, facility) in [
            (&b"30,340,5690716,-;udevd[80]: starting version 181\n"[..], 3),
            (b"12,900,44,-;I/O error, dev sda, sector 1 op 0x1:(WRITE)\n", 1),
            (b"45,901,45,-;systemd-journald[1]: x\n", FACILITY_DAEMON),
            (b"7,902,46,-;x\n", FACILITY_KERNEL),
        ] {
            assert_eq!(parse(bytes).unwrap().facility, facility);
        }
    }

    #[test]
    fn the_oldest_format_has_no_flags() {
        let record = parse(b"6,1,2;Linux version 3.5.0\n").unwrap();
        assert_eq!(record.text, "Linux version 3.5.0");
    }

    #[test]
    fn the_text_may_hold_semicolons() {
        assert_eq!(parse(b"6,1,2,-;a;b;c\n").unwrap().text, "a;b;c");
    }

    #[test]
    fn utf8_comes_back_from_its_escapes_and_the_rest_is_replaced() {
        assert_eq!(parse(b"6,1,2,-;\\xc2\\xb5s").unwrap().text, "\u{b5}s");
        assert_eq!(parse(b"6,1,2,-;\\xff \xfe").unwrap().text, "\u{fffd} \u{fffd}");
        assert_eq!(parse(b"6,1,2,-;a\\x5cb").unwrap().text, "a\\b");
        assert_eq!(parse(b"6,1,2,-;\\x5cx0a").unwrap().text, "\\x0a", "undone once only");
        assert_eq!(parse(b"6,1,2,-;\\x0").unwrap().text, "\\x0");
        assert_eq!(parse(b"6,1,2,-;\\xzz\\").unwrap().text, "\\xzz\\");
    }

    #[test]
    fn what_is_no_record_says_why() {
        for (bytes, error) in [
            (&b""[..], Malformed::NoHead),
            (b"\n", Malformed::NoHead),
            (b"6,1,2,-", Malformed::NoHead),
            (b"6,1,2,-\n;", Malformed::NoHead),
            (b";", Malformed::BadHead),
            (b"6;x", Malformed::BadHead),
            (b"6,1;x", Malformed::BadHead),
            (b"6,1,;x", Malformed::BadHead),
            (b"6,,2,-;x", Malformed::BadHead),
            (b"-6,1,2,-;x", Malformed::BadHead),
            (b"+6,1,2,-;x", Malformed::BadHead),
            (b" 6,1,2,-;x", Malformed::BadHead),
            (b"6,18446744073709551616,2,-;x", Malformed::BadHead),
            (b"\0\0\0\0;\0", Malformed::BadHead),
            (b"\xff\xfe,\xff,\xff;", Malformed::BadHead),
        ] {
            assert_eq!(parse(bytes), Err(error), "{}", bytes.escape_ascii());
        }
        assert_eq!(parse(&vec![b'6'; MAX_BYTES + 1]), Err(Malformed::TooLong));
    }

    #[test]
    fn the_largest_numbers_are_numbers() {
        let max = u64::MAX;
        let record = parse(format!("{max},{max},{max},-;x").as_bytes()).unwrap();
        assert_eq!((record.facility, record.sequence, record.micros), (max >> 3, max, max));
    }

    /// Writes text as the kernel does.
    fn escape(text: &[u8]) -> String {
        text.iter()
            .map(|&b| match b {
                b'\\' | 0..0x20 | 0x7f.. => format!("\\x{b:02x}"),
                _ => char::from(b).to_string(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let parsed = parse(&bytes);
            prop_assert!(parsed.is_err() || bytes.contains(&b';'));
        }

        #[test]
        fn no_text_behind_a_good_head_makes_it_fail(
            text in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut bytes = b"3,7,8,-;".to_vec();
            bytes.extend(&text);
            prop_assert_eq!(parse(&bytes).map(|r| r.sequence), Ok(7));
        }

        #[test]
        fn every_cut_of_a_record_is_parsed_or_refused(cut in 0_usize..120) {
            let whole = b"6,1339,5140900,-,caller=T274;sd 2:0:0:0: \\x5b[sda]\n \
                          SUBSYSTEM=scsi\n DEVICE=+scsi:2:0:0:0\n";
            let part = &whole[..cut.min(whole.len())];
            prop_assert_eq!(parse(part).is_ok(), part.contains(&b';'));
        }

        #[test]
        fn what_the_kernel_escapes_comes_back(
            prefix in 0_u64..256, sequence: u64, micros: u64, text in "\\PC{0,200}",
        ) {
            let bytes = format!("{prefix},{sequence},{micros},-;{}\n", escape(text.as_bytes()));
            let record = parse(bytes.as_bytes()).unwrap();
            prop_assert_eq!(record.facility, prefix >> 3);
            prop_assert_eq!((record.sequence, record.micros), (sequence, micros));
            prop_assert_eq!(record.text, text);
        }
    }
}
