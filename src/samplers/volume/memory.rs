//! What is remembered of each volume's filesystem, and whether a filesystem is younger than its volume.
//!
//! Three things can tell, and each is enough: the filesystem of before that is remembered, a backup of the volume that is
//! older than its filesystem, and the folder that kubelet made for its mount long before the filesystem. The last two
//! need no memory at all. A first mount can never count: nothing is remembered, no backup can be older, and kubelet makes
//! the folder just before the driver makes the filesystem.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// No more volumes are remembered; the one that was not seen for longest goes.
pub(super) const MAX_ENTRIES: usize = 256;
/// What was not seen for so long is forgotten, in seconds.
const FORGET: u64 = 90 * 86_400;
/// Times of one filesystem that were read in two ways differ by no more.
const SAME: u64 = 1;
/// What is this much younger is another filesystem, in seconds; for those of which no UUID is known.
const YOUNGER: u64 = 60;
/// How much older than the filesystem kubelet's folder must be, in seconds. At the first mount of a volume it is made some
/// seconds before; an hour leaves room for a driver that tries for long.
const STAGED: u64 = 3_600;
/// When a volume was last seen is kept to the day, so that the file is written once a day and not with each run.
const DAY: u64 = 86_400;

/// What was seen of a volume's filesystem; times are Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) uuid: Option<String>,
    pub(super) created: Option<u64>,
    /// When kubelet made the folder of its mount.
    pub(super) staged: Option<u64>,
    /// When Longhorn made the volume, where it is one of Longhorn's.
    pub(super) volume_made: Option<u64>,
    /// The data of the oldest backup that is younger than the volume.
    pub(super) backed_up: Option<u64>,
}

/// What is remembered of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    uuid: Option<String>,
    created: Option<u64>,
    pub(super) first_seen: u64,
    last_seen: u64,
    /// When the filesystem was made that took the place of another.
    pub(super) reformatted: Option<u64>,
    /// Longhorn lists it.
    listed: bool,
}

/// How it is known that a filesystem took the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Another one is remembered.
    Remembered,
    /// A backup is older.
    BackedUp(u64),
    /// Kubelet's folder is older.
    Staged(u64),
}

/// The volumes by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    version: u32,
    volumes: BTreeMap<String, Entry>,
}

/// Of the file.
const VERSION: u32 = 1;

impl Memory {
    /// What a state file says.
    ///
    /// # Errors
    ///
    /// When it is none of this version.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut memory: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if memory.version != VERSION {
            return Err(format!("version {} is not known", memory.version));
        }
        memory.trim();
        Ok(memory)
    }

    /// As a state file.
    pub(super) fn text(&self) -> String {
        let whole = Self { version: VERSION, ..self.clone() };
        serde_json::to_string(&whole).unwrap_or_default()
    }

    /// Takes over what a state file knew and this one does not, or saw earlier.
    pub(super) fn recall(&mut self, earlier: Self) {
        for (name, old) in earlier.volumes {
            let Some(new) = self.volumes.remove(&name) else {
                self.volumes.insert(name, old);
                continue;
            };
            self.volumes.insert(name.clone(), old);
            let seen = Sighting { uuid: new.uuid, created: new.created, ..Sighting::default() };
            self.see(&name, &seen, new.last_seen);
            if let Some(entry) = self.volumes.get_mut(&name) {
                entry.reformatted = entry.reformatted.max(new.reformatted);
            }
        }
        self.trim();
    }

    /// Remembers what was seen, and says how it is known that it took the place of another filesystem.
    pub(super) fn see(&mut self, name: &str, seen: &Sighting, now: u64) -> Option<Why> {
        let mut entry = self.volumes.remove(name).unwrap_or_default();
        // A volume of the same name that was made since is another one.
        if seen.volume_made.is_some_and(|made| made > entry.first_seen) {
            entry = Entry::default();
        }
        let why = why(&entry, seen);
        if why.is_some() {
            entry.reformatted = Some(seen.created.unwrap_or(now));
        } else if let (Some(then), Some(created)) = (entry.reformatted, seen.created)
            && created.saturating_add(SAME) < then
        {
            // The filesystem of before is back, as after a restore.
            entry.reformatted = None;
        }
        if entry.first_seen == 0 {
            entry.first_seen = now;
        }
        if now >= entry.last_seen.saturating_add(DAY) || now < entry.last_seen {
            entry.last_seen = now;
        }
        entry.listed |= seen.volume_made.is_some();
        // The times of the same filesystem may differ by a second, and must not be written again and again.
        let same = entry.created.zip(seen.created).is_some_and(|(a, b)| a.abs_diff(b) <= SAME);
        if !same {
            entry.created = seen.created.or(entry.created.filter(|_| why.is_none()));
        }
        entry.uuid = seen.uuid.clone().or(entry.uuid.filter(|_| why.is_none()));
        self.volumes.insert(name.to_owned(), entry);
        why
    }

    /// Forgets volumes that Longhorn listed and lists no more, and those that were not seen for long.
    pub(super) fn forget(&mut self, listed: Option<&dyn Fn(&str) -> bool>, now: u64) {
        self.volumes.retain(|name, entry| {
            let gone = entry.listed && listed.is_some_and(|listed| !listed(name));
            !gone && entry.last_seen.saturating_add(FORGET) > now
        });
        self.trim();
    }

    fn trim(&mut self) {
        while self.volumes.len() > MAX_ENTRIES {
            let oldest = self.volumes.iter().min_by_key(|(_, entry)| entry.last_seen);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
            self.volumes.remove(&oldest);
        }
    }

    /// What is remembered, by name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.volumes.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.volumes.get(name)
    }
}

/// How it is known that this is not the volume's first filesystem.
fn why(entry: &Entry, seen: &Sighting) -> Option<Why> {
    let created = seen.created;
    let before = match (entry.created, created) {
        (Some(a), Some(b)) if a.abs_diff(b) <= SAME => Some(false),
        // One that is older was put back, and has wiped nothing.
        (Some(a), Some(b)) if b < a => Some(false),
        (Some(a), Some(b)) => {
            let uuids = entry.uuid.as_ref().zip(seen.uuid.as_ref());
            Some(uuids.map_or(b > a.saturating_add(YOUNGER), |(a, b)| a != b))
        }
        _ => entry.uuid.as_ref().zip(seen.uuid.as_ref()).map(|(a, b)| a != b),
    };
    let after_first_sight = || {
        entry.first_seen > 0
            && created.is_some_and(|made| made > entry.first_seen.saturating_add(YOUNGER))
    };
    if before.unwrap_or_else(after_first_sight) {
        return Some(Why::Remembered);
    }
    let created = created?;
    let backed_up = seen.backed_up.filter(|backup| created > backup.saturating_add(YOUNGER));
    let staged = seen.staged.filter(|staged| created > staged.saturating_add(STAGED));
    backed_up.map(Why::BackedUp).or_else(|| staged.map(Why::Staged))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_700_000_000;
    const HOUR: u64 = 3_600;

    fn seen(uuid: &str, created: u64) -> Sighting {
        Sighting { uuid: Some(uuid.into()), created: Some(created), ..Sighting::default() }
    }

    fn reformatted(memory: &Memory) -> Option<u64> {
        memory.entry("v").and_then(|entry| entry.reformatted)
    }

    #[test]
    fn a_filesystem_of_a_first_mount_is_no_reformatted_one_however_long_the_volume_waited() {
        let mut memory = Memory::default();
        let first =
            Sighting { staged: Some(T - 30), volume_made: Some(T - 30 * DAY), ..seen("a", T) };
        assert_eq!(memory.see("v", &first, T + 5), None);
        assert_eq!(memory.see("v", &first, T + 60), None);
        assert_eq!(reformatted(&memory), None);
        assert_eq!(memory.entry("v").unwrap().first_seen, T + 5);
    }

    #[test]
    fn another_and_younger_filesystem_is_told_once_and_remembered() {
        let mut memory = Memory::default();
        memory.see("v", &seen("a", T), T + 5);
        assert_eq!(memory.see("v", &seen("b", T + 30), T + 40), Some(Why::Remembered));
        assert_eq!(memory.see("v", &seen("b", T + 30), T + 50), None);
        assert_eq!(reformatted(&memory), Some(T + 30));
        assert_eq!(memory.entry("v").unwrap().first_seen, T + 5, "the volume is the same");
    }

    #[test]
    fn a_new_uuid_of_the_same_filesystem_wipes_nothing() {
        let mut memory = Memory::default();
        memory.see("v", &seen("a", T), T + 5);
        assert_eq!(memory.see("v", &seen("b", T), T + HOUR), None, "tune2fs -U");
    }

    #[test]
    fn where_no_time_is_known_the_uuid_tells_and_where_no_uuid_is_known_the_time() {
        let mut memory = Memory::default();
        let only = |uuid: &str| Sighting { uuid: Some(uuid.into()), ..Sighting::default() };
        memory.see("v", &only("a"), T);
        assert_eq!(memory.see("v", &only("a"), T + HOUR), None);
        assert_eq!(memory.see("v", &only("b"), T + 2 * HOUR), Some(Why::Remembered));
        assert_eq!(reformatted(&memory), Some(T + 2 * HOUR), "when it was noticed");
        let only = |created| Sighting { created: Some(created), ..Sighting::default() };
        memory.see("w", &only(T), T + 1);
        assert_eq!(memory.see("w", &only(T + YOUNGER), T + HOUR), None, "too near to be sure");
        assert_eq!(memory.see("w", &only(T + HOUR), T + 2 * HOUR), Some(Why::Remembered));
    }

    #[test]
    fn a_filesystem_younger_than_the_first_sight_of_its_volume_is_told_without_any_memory_of_the_first()
     {
        let mut memory = Memory::default();
        memory.see("v", &Sighting::default(), T);
        let mut young = memory.clone();
        assert_eq!(young.see("v", &seen("a", T + HOUR), T + 2 * HOUR), Some(Why::Remembered));
        assert_eq!(memory.see("v", &seen("a", T - HOUR), T + 2 * HOUR), None);
    }

    #[test]
    fn a_backup_that_is_older_than_the_filesystem_needs_no_memory() {
        let mut memory = Memory::default();
        let young = Sighting { backed_up: Some(T - HOUR), ..seen("a", T) };
        assert_eq!(memory.see("v", &young, T + 5), Some(Why::BackedUp(T - HOUR)));
        assert_eq!(reformatted(&memory), Some(T));
        let mut memory = Memory::default();
        let restored = Sighting { backed_up: Some(T + HOUR), ..seen("a", T) };
        assert_eq!(memory.see("v", &restored, T + 2 * HOUR), None);
    }

    #[test]
    fn a_folder_of_kubelet_that_is_much_older_than_the_filesystem_needs_no_memory() {
        let mut memory = Memory::default();
        let late = Sighting { staged: Some(T - STAGED), ..seen("a", T) };
        assert_eq!(memory.see("v", &late, T + 5), None, "a first mount may take long");
        let young = Sighting { staged: Some(T - STAGED - 1), ..seen("a", T) };
        assert_eq!(Memory::default().see("v", &young, T + 5), Some(Why::Staged(T - STAGED - 1)));
    }

    #[test]
    fn a_filesystem_of_before_that_is_back_ends_it() {
        let mut memory = Memory::default();
        memory.see("v", &seen("a", T), T + 5);
        memory.see("v", &seen("b", T + HOUR), T + HOUR + 5);
        assert_eq!(memory.see("v", &seen("a", T), T + 2 * HOUR), None);
        assert_eq!(reformatted(&memory), None);
    }

    #[test]
    fn a_volume_that_was_made_anew_under_the_same_name_is_a_new_one() {
        let mut memory = Memory::default();
        let of = |made, seen: Sighting| Sighting { volume_made: Some(made), ..seen };
        memory.see("v", &of(T - HOUR, seen("a", T)), T + 5);
        let anew = of(T + DAY, seen("b", T + DAY + 60));
        assert_eq!(memory.see("v", &anew, T + DAY + 90), None);
        assert_eq!(memory.entry("v").unwrap().first_seen, T + DAY + 90);
    }

    #[test]
    fn a_state_file_that_comes_late_is_compared_with_what_was_seen_since() {
        let mut file = Memory::default();
        file.see("v", &seen("a", T), T + 5);
        file.see("gone", &seen("c", T), T + 5);
        let text = file.text();
        let mut memory = Memory::default();
        memory.see("v", &seen("b", T + HOUR), T + HOUR + 5);
        assert_eq!(reformatted(&memory), None);
        memory.recall(Memory::parse(text.as_bytes()).unwrap());
        assert_eq!(reformatted(&memory), Some(T + HOUR));
        assert_eq!(memory.entry("v").unwrap().first_seen, T + 5);
        assert!(memory.entry("gone").is_some());
    }

    #[test]
    fn a_state_file_that_is_damaged_or_of_another_version_says_so() {
        assert!(Memory::parse(b"{\"version\":1,\"vol").is_err());
        assert!(Memory::parse(b"").is_err());
        let newer = Memory::parse(br#"{"version":2,"volumes":{}}"#).unwrap_err();
        assert_eq!(newer, "version 2 is not known");
        assert!(Memory::parse(br#"{"version":1,"volumes":{"v":{"first_seen":1}}}"#).is_ok());
    }

    #[test]
    fn times_that_nobody_can_have_seen_are_survived_and_made_good_by_the_next_look() {
        let end = u64::MAX;
        let state = format!(
            r#"{{"version":1,"volumes":{{"v":{{"created":{end},"first_seen":{end},"last_seen":{end},"reformatted":{end}}}}}}}"#
        );
        let mut memory = Memory::parse(state.as_bytes()).unwrap();
        memory.forget(None, T);
        let backed_up = Sighting { backed_up: Some(end), staged: Some(end), ..seen("a", T) };
        memory.see("v", &backed_up, T + 5);
        assert_eq!(memory.entry("v").unwrap().last_seen, T + 5);
    }

    #[test]
    fn what_is_remembered_changes_once_a_day_only() {
        let mut memory = Memory::default();
        memory.see("v", &seen("a", T), T + 5);
        let before = memory.clone();
        memory.see("v", &seen("a", T + 1), T + 6 * HOUR);
        assert_eq!(memory, before);
        memory.see("v", &seen("a", T), T + 30 * HOUR);
        assert_ne!(memory, before);
    }

    #[test]
    fn volumes_that_are_gone_are_forgotten_and_no_more_than_256_are_remembered() {
        let mut memory = Memory::default();
        let listed = Sighting { volume_made: Some(T - HOUR), ..seen("a", T) };
        memory.see("v", &listed, T + 5);
        memory.see("other", &seen("b", T), T + 5);
        memory.forget(None, T + HOUR);
        assert_eq!(memory.entries().count(), 2, "Longhorn could not be asked");
        memory.forget(Some(&|_| false), T + HOUR);
        assert_eq!(memory.entries().map(|(name, _)| name).collect::<Vec<_>>(), ["other"]);
        memory.forget(None, T + 91 * DAY);
        assert_eq!(memory.entries().count(), 0);
        for n in 0..300 {
            memory.see(&format!("v{n}"), &seen("a", T), T + n * DAY);
        }
        memory.trim();
        assert_eq!(memory.entries().count(), MAX_ENTRIES);
        assert!(memory.entry("v0").is_none() && memory.entry("v299").is_some());
    }
}
