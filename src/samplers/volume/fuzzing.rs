//! See `crate::fuzzing`.

use serde_json::Value;

use super::longhorn::Longhorn;
use super::memory::{MAX_ENTRIES, Memory, Sighting};
use super::superblock::{self, Superblock};

/// What is found has a UUID, and times of at most five bytes.
pub fn superblock(bytes: &[u8]) {
    let Some(Superblock { uuid, created, mounted }) = superblock::parse(bytes) else { return };
    assert_eq!(uuid.len(), 36);
    for time in [created, mounted].into_iter().flatten() {
        let seconds = super::unix(time).unwrap_or_default();
        assert!(seconds < 1 << 40, "{seconds}");
        assert!(!super::reason(super::Why::Staged(seconds)).is_empty());
    }
}

/// What is read is bounded and the same when it is written; and no time in it stops the next run.
pub fn volume_state(bytes: &[u8]) {
    let Ok(mut memory) = Memory::parse(bytes) else { return };
    assert!(memory.entries().count() <= MAX_ENTRIES);
    assert_eq!(Memory::parse(memory.text().as_bytes()).as_ref(), Ok(&memory));
    let names: Vec<_> = memory.entries().map(|(name, _)| name.to_owned()).collect();
    for seconds in [0, 1_700_000_000, u64::MAX] {
        let seen =
            Sighting { created: Some(seconds), uuid: Some("a".into()), ..Sighting::default() };
        for name in &names {
            memory.clone().see(name, &seen, 1_800_000_000);
        }
    }
    memory.recall(memory.clone());
    memory.forget(Some(&|name| name.len() > 3), 1_800_000_000);
    assert!(memory.entries().count() <= names.len());
}

/// One object makes at most one volume, and no address is kept.
pub fn longhorn_object(bytes: &[u8]) {
    let Ok(object) = serde_json::from_slice::<Value>(bytes) else { return };
    let mut longhorn = Longhorn::default();
    longhorn.volume(&object);
    longhorn.target(&object);
    longhorn.backup(&object);
    assert!(longhorn.volumes.len() <= 1);
    for volume in longhorn.volumes.values() {
        assert!(volume.backups <= 1 && volume.oldest <= volume.newest, "{volume:?}");
    }
}
