//! A cursor over bytes that yields nothing beyond their end, and dqlite's checksum.

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text that ends with a zero byte, of at most `limit` printable ASCII characters.
    pub(super) fn text(&mut self, limit: usize) -> Option<&'a str> {
        let end = self.0.iter().take(limit + 1).position(|byte| *byte == 0)?;
        let text = str::from_utf8(self.take(end)?).ok()?;
        self.take(1)?;
        text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ').then_some(text)
    }

    /// The same, padded with zeros to whole words of eight bytes.
    pub(super) fn padded_text(&mut self, limit: usize) -> Option<&'a str> {
        let text = self.text(limit)?;
        let length = text.len() + 1;
        self.take(length.next_multiple_of(8) - length)?;
        Some(text)
    }
}

/// CRC-32 with the polynomial 0x04C11DB7 from zero, not reflected and without a final XOR.
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = table();
    let mut crc = 0_u32;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        crc = (crc << 8) ^ TABLE[usize::from(crc.to_be_bytes()[0] ^ byte)];
    }
    crc
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
        let mut crc = (i as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04C1_1DB7 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_dqlite() {
        assert_eq!(crc32(&[b"123456789"]), 0x89A1_897F);
        assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0x89A1_897F);
        assert_eq!(crc32(&[]), 0);
    }

    #[test]
    fn nothing_is_read_beyond_the_end_or_the_limit() {
        let mut bytes = Bytes(&[1, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(
            (bytes.u64(), bytes.u32(), bytes.u8(), bytes.u8()),
            (Some(1), None, Some(7), None)
        );
        assert_eq!(Bytes(b"abc\0").text(3), Some("abc"));
        assert_eq!(Bytes(b"abc\0").text(2), None);
        assert_eq!(Bytes(b"abc").text(9), None);
        assert_eq!(Bytes(b"a\nc\0").text(9), None);
        let mut two = Bytes(b"abc\0\0\0\0\0x\0\0\0\0\0\0\0");
        assert_eq!(
            (two.padded_text(9), two.padded_text(9), two.0.len()),
            (Some("abc"), Some("x"), 0)
        );
        assert_eq!(Bytes(b"abc\0").padded_text(9), None, "without its padding");
    }
}
