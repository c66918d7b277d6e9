//! Numbers of types in the kernel's BTF, the description of its own types at `/sys/kernel/btf/vmlinux`.
//!
//! Read once for a list of names and dropped: it has five megabytes. The layout is that of
//! `Documentation/bpf/btf.rst`; what does not fit it is refused.

use std::io;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// The number of a function.
    Function(&'a str),
    /// The number of a name for another type, as the types of tracepoints are.
    Typedef(&'a str),
    /// Where a member lies in its struct, in bytes.
    Member(&'a str, &'a str),
}

const STRUCT: usize = 4;
const TYPEDEF: usize = 8;
const FUNCTION: usize = 12;
const MAGIC: u16 = 0xeb9f;
/// Bytes of a type before what its kind adds.
const COMMON: usize = 12;

/// The number or place of each of these, in their order; nothing for one that is not there.
///
/// # Errors
///
/// When the bytes are no BTF of this machine's byte order.
pub(crate) fn find(btf: &[u8], wanted: &[Wanted]) -> io::Result<Vec<Option<u32>>> {
    parse(btf, wanted)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no BTF that can be read"))
}

fn parse(btf: &[u8], wanted: &[Wanted]) -> Option<Vec<Option<u32>>> {
    if btf.get(..2)? != MAGIC.to_ne_bytes() {
        return None;
    }
    let header = word(btf, 4)?;
    let part = |offset: usize| {
        let start = header.checked_add(word(btf, offset)?)?;
        btf.get(start..start.checked_add(word(btf, offset + 4)?)?)
    };
    let (types, names) = (part(8)?, part(16)?);
    let mut found = vec![None; wanted.len()];
    let (mut at, mut number) = (0, 1_u32);
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, info & 0xffff);
        for (slot, wanted) in found.iter_mut().zip(wanted) {
            let hit = match (wanted, kind) {
                (Wanted::Function(text), FUNCTION) | (Wanted::Typedef(text), TYPEDEF) => {
                    is_named(names, name, text).then_some(number)
                }
                (Wanted::Member(text, member), STRUCT) if is_named(names, name, text) => {
                    let members = types.get(at + COMMON..at + COMMON + count * 12)?;
                    place(members, names, member, info >> 31 == 1)
                }
                _ => None,
            };
            *slot = slot.or(hit);
        }
        let more = match kind {
            // Integers, variables and tags of declarations.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Structs, unions, sections, and enumerations of 64 bits.
            STRUCT | 5 | 15 | 19 => count * 12,
            // Enumerations and prototypes of functions.
            6 | 13 => count * 8,
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        at += COMMON + more;
        number += 1;
    }
    Some(found)
}

/// Where a member lies, in bytes. In a struct with bit fields the length of each member stands in its upper byte.
fn place(members: &[u8], names: &[u8], member: &str, has_fields: bool) -> Option<u32> {
    let is_it = |m: &&[u8]| word(m, 0).is_some_and(|at| is_named(names, at, member));
    let bits = word(members.chunks_exact(12).find(is_it)?, 8)?;
    u32::try_from(if has_fields { bits & 0x00ff_ffff } else { bits } / 8).ok()
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?) as usize)
}

fn is_named(names: &[u8], at: usize, text: &str) -> bool {
    let rest = names.get(at..).and_then(|rest| rest.strip_prefix(text.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with these types, each of kind, name and so many bytes of its own.
    fn built(types: &[(u32, &str, u32, usize)]) -> Vec<u8> {
        let (mut body, mut names) = (Vec::new(), vec![0]);
        for (kind, name, count, more) in types {
            let at = u32::try_from(names.len()).unwrap();
            names.extend(name.bytes().chain([0]));
            for word in [at, (kind << 24) | count, 0] {
                body.extend(word.to_ne_bytes());
            }
            body.resize(body.len() + more, 0xff);
        }
        let mut all = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        let (types, strings) =
            (u32::try_from(body.len()).unwrap(), u32::try_from(names.len()).unwrap());
        for word in [24, 0, types, types, strings] {
            all.extend(word.to_ne_bytes());
        }
        [all, body, names].concat()
    }

    #[test]
    fn types_are_counted_from_one_and_found_by_kind_and_whole_name() {
        let btf = built(&[
            (1, "int", 0, 4),
            (4, "file", 2, 24),
            (13, "", 3, 24),
            (12, "vfs_fsync_range", 0, 0),
            (12, "vfs_fsync", 0, 0),
            (8, "vfs_fsync_range", 0, 0),
            (19, "big", 1, 12),
            (8, "vfs_fsync", 0, 0),
        ]);
        let wanted = [
            Wanted::Function("vfs_fsync"),
            Wanted::Typedef("vfs_fsync"),
            Wanted::Function("vfs"),
            Wanted::Function("vfs_fsync_range"),
            Wanted::Member("file", "f_mode"),
        ];
        assert_eq!(find(&btf, &wanted).unwrap(), [Some(5), Some(8), None, Some(4), None]);
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let whole = built(&[(1, "int", 0, 4), (12, "f", 0, 0)]);
        assert!(find(&whole, &[]).is_ok());
        for cut in 0..whole.len() {
            assert!(find(&whole[..cut], &[Wanted::Function("f")]).is_err(), "{cut} bytes");
        }
        assert!(
            find(&built(&[(30, "new", 0, 0)]), &[]).is_err(),
            "a kind of which the length is not known"
        );
        assert!(find(b"\x9f\xeb", &[]).is_err() && find(b"\xeb\x9f\0\0", &[]).is_err());
    }

    #[test]
    fn this_kernel_describes_the_call_that_syncs() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let call = if cfg!(target_arch = "x86_64") {
            "__x64_sys_fdatasync"
        } else {
            "__arm64_sys_fdatasync"
        };
        let wanted = [
            Wanted::Function(call),
            Wanted::Function("no_such_function"),
            Wanted::Member("list_head", "next"),
            Wanted::Member("list_head", "prev"),
            Wanted::Member("list_head", "nowhere"),
        ];
        let found = find(&btf, &wanted).unwrap();
        assert!(found[0].is_some() && found[1].is_none(), "{found:?}");
        assert_eq!(found[2..], [Some(0), Some(8), None], "two addresses");
    }
}
