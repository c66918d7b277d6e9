//! Flushes of the datastore's disks, as the kernel counts them.
//!
//! Reads `/proc/diskstats` (one file, in memory). Fields 19 and 20 are flush requests and the time
//! that they took, since Linux 5.5; a disk with a protected cache is sent none. A device-mapper device
//! has none of its own, so the whole disks below are read.

/// What the kernel has counted since boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flushes<'a> {
    /// The disk.
    pub(super) disk: &'a str,
    /// Flush requests completed.
    pub(super) count: u64,
    /// What they took, in milliseconds.
    pub(super) millis: u64,
}

/// The lines of these disks.
pub(super) fn parse<'a>(diskstats: &'a str, disks: &[String]) -> Vec<Flushes<'a>> {
    diskstats.lines().filter_map(line).filter(|f| disks.iter().any(|d| d == f.disk)).collect()
}

fn line(line: &str) -> Option<Flushes<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let disk = fields.nth(2)?;
    let count = fields.nth(15)?.parse().ok()?;
    let millis = fields.next()?.parse().ok()?;
    Some(Flushes { disk, count, millis })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Captured on Linux 6.18; the last line as Linux 5.4 writes it.
    const CAPTURED: &str = "\
   7       0 loop0 446 0 3017 215 581 349 851335 18469 0 2520 19838 6 0 786440 2 85 1150
 254       0 vda 196493 29684 16740946 212538 106986 93849 34356528 155542 0 30160 371358 18349 42 5034936 2227 20934 1050
 253       0 zram0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
   8       0 sda 196493 29684 16740946 212538 106986 93849 34356528 155542 0 30160 371358 1 2 3 4
";

    #[test]
    fn the_flushes_of_the_asked_disks_are_read() {
        let asked = ["vda".to_owned()];
        let expected = [Flushes { disk: "vda", count: 20_934, millis: 1_050 }];
        assert_eq!(parse(CAPTURED, &asked), expected);
    }

    #[test]
    fn a_kernel_that_does_not_count_flushes_has_no_figures() {
        assert_eq!(parse(CAPTURED, &["sda".to_owned(), "sdz".to_owned()]), []);
        assert_eq!(parse("", &["sda".to_owned()]), []);
        assert_eq!(parse("8 0 sda x\n\n \n", &["sda".to_owned()]), []);
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_hides_no_line(before in "\\PC{0,80}", after in "[ 0-9a-z\n]{0,80}") {
            let text = format!("{before}\n{CAPTURED}{after}");
            let asked = ["zram0".to_owned()];
            prop_assert_eq!(&parse(&text, &asked)[0], &Flushes { disk: "zram0", count: 0, millis: 0 });
        }
    }
}
