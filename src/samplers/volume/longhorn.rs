//! Longhorn's volumes and backups, from the objects in the API server's datastore.
//!
//! Objects of custom resources are JSON there, so they can be read while the API server is down. Three prefixes are read,
//! a hundred objects a request, one request after the other, from the member's own copy where it has one. What is read is
//! bounded; beyond it there is no figure at all, since a count of some of the backups would be wrong. Of a backup target
//! only whether there is one is kept: its address may hold a secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use etcd_client::{GetOptions, ResponseHeader};
use serde_json::Value;

use super::unix;
use crate::etcd::client::Consistency;
use crate::etcd::{Access, Client, Failure, Reason, TlsFiles};
use crate::sample::{Batch, SampleError};

/// Objects in one answer.
const PAGE: i64 = 100;
/// Objects of a kind.
const MAX_OBJECTS: usize = 5_000;
/// Bytes of a kind, keys left out.
const MAX_BYTES: usize = 32 << 20;

/// Longhorn's view of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Volume {
    /// When it was made.
    pub(super) made: Option<u64>,
    /// It follows the backups of another cluster and makes none.
    pub(super) standby: bool,
    /// Backups that are complete.
    pub(super) backups: u64,
    /// The data of the oldest and of the newest of them.
    pub(super) oldest: Option<u64>,
    pub(super) newest: Option<u64>,
}

/// What the datastore says about Longhorn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Longhorn {
    pub(super) volumes: BTreeMap<String, Volume>,
    /// Whether backups go anywhere.
    pub(super) has_target: bool,
}

/// The reader.
pub(super) struct Registry {
    clients: Vec<Client>,
    current: usize,
    consistency: Consistency,
    tls: Arc<TlsFiles>,
}

impl Registry {
    pub(super) fn new(access: &Access, timeout: std::time::Duration) -> Self {
        Self {
            clients: Client::all(access, timeout),
            current: 0,
            consistency: access.consistency(),
            tls: Arc::clone(&access.tls),
        }
    }

    /// Reads everything once. A failure is a part of the run that failed: the mounts tell enough without it.
    pub(super) async fn read(&mut self, out: &mut Batch) -> Option<Longhorn> {
        let failure = match self.all().await {
            Ok(longhorn) => {
                self.told(false, out).await;
                return Some(longhorn);
            }
            Err(Stop::TooMuch(what)) => {
                let client = &self.clients[self.current];
                out.fail(SampleError::call(client.address().to_string(), what));
                return None;
            }
            Err(Stop::Failed(failure)) => failure,
        };
        let client = &self.clients[self.current];
        let blind = failure.reason == Reason::TlsConfig;
        if let Some(error) = client.closed(&failure) {
            out.fail(error);
        } else if !blind {
            let peer = client.address();
            out.fail(match failure.reason {
                Reason::Timeout => SampleError::Timeout {
                    what: format!("Longhorn's objects at {peer}"),
                    after: client.timeout(),
                },
                _ => SampleError::call(
                    peer.to_string(),
                    format!("Longhorn's objects: {}", failure.text),
                ),
            });
        }
        if !failure.said {
            client.reset().await;
            self.current = (self.current + 1) % self.clients.len();
        }
        self.told(blind, out).await;
        None
    }

    async fn told(&self, blind: bool, out: &mut Batch) {
        if let Err(error) = self.tls.tell(blind, out).await {
            out.fail(error);
        }
    }

    async fn all(&mut self) -> Result<Longhorn, Stop> {
        let mut longhorn = Longhorn::default();
        self.each("/registry/longhorn.io/volumes/", |object| longhorn.volume(object)).await?;
        if longhorn.volumes.is_empty() {
            return Ok(longhorn);
        }
        self.each("/registry/longhorn.io/backuptargets/", |object| longhorn.target(object)).await?;
        if longhorn.has_target {
            self.each("/registry/longhorn.io/backups/", |object| longhorn.backup(object)).await?;
        }
        Ok(longhorn)
    }

    /// Hands over each object below a prefix, page by page. Each page begins behind the last key of the one before, so
    /// that nothing depends on a revision that may be compacted meanwhile; only kine before 0.11.9, which heeds no beginning
    /// otherwise, is asked for that of the first page.
    async fn each(&mut self, prefix: &str, mut take: impl FnMut(&Value)) -> Result<(), Stop> {
        // The end of the range is the next character in the place of the last slash.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let (mut from, mut objects, mut bytes) = (prefix.as_bytes().to_vec(), 0, 0);
        let mut revision = 0;
        loop {
            let answer = match self.page(&from, &end, revision).await {
                Err(refusal)
                    if self.consistency == Consistency::Serializable
                        && refusal.text.contains("serializable") =>
                {
                    self.consistency = Consistency::Linearizable;
                    self.page(&from, &end, revision).await
                }
                answer => answer,
            };
            let answer = answer.map_err(Stop::Failed)?;
            if answer.kvs().first().is_some_and(|kv| kv.key() < from.as_slice()) {
                let now = answer.header().map_or(0, ResponseHeader::revision);
                if revision != 0 || now == 0 {
                    let text = format!("what is below {prefix} begins anew with each page");
                    return Err(Stop::TooMuch(text));
                }
                revision = now;
                continue;
            }
            for kv in answer.kvs() {
                objects += 1;
                bytes += kv.value().len();
                // What is no JSON is none of Longhorn's.
                if let Ok(object) = serde_json::from_slice(kv.value()) {
                    take(&object);
                }
            }
            let Some(last) = answer.kvs().last().filter(|_| answer.more()) else { return Ok(()) };
            if objects >= MAX_OBJECTS || bytes >= MAX_BYTES {
                let text =
                    format!("more than {objects} objects below {prefix}, which are not read");
                return Err(Stop::TooMuch(text));
            }
            from = [last.key(), &[0]].concat();
        }
    }

    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        revision: i64,
    ) -> crate::etcd::Answer<etcd_client::GetResponse> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
        self.clients[self.current].get(from, options, self.consistency).await
    }
}

/// Why there is nothing.
enum Stop {
    Failed(Failure),
    TooMuch(String),
}

fn text<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    object.pointer(path)?.as_str().filter(|text| !text.is_empty())
}

fn time(object: &Value, path: &str) -> Option<u64> {
    unix(humantime::parse_rfc3339(text(object, path)?).ok()?)
}

impl Longhorn {
    pub(super) fn volume(&mut self, object: &Value) {
        let Some(name) = text(object, "/metadata/name") else { return };
        let standby = ["/spec/Standby", "/status/isStandby"]
            .iter()
            .any(|path| object.pointer(path).and_then(Value::as_bool) == Some(true));
        let made = time(object, "/metadata/creationTimestamp");
        self.volumes.insert(name.to_owned(), Volume { made, standby, ..Volume::default() });
    }

    pub(super) fn target(&mut self, object: &Value) {
        self.has_target |= text(object, "/spec/backupTargetURL").is_some();
    }

    pub(super) fn backup(&mut self, object: &Value) {
        let name = text(object, "/status/volumeName")
            .or_else(|| text(object, "/metadata/labels/backup-volume"));
        let Some(volume) = name.and_then(|name| self.volumes.get_mut(name)) else { return };
        let complete = text(object, "/status/state") == Some("Completed");
        if !complete || text(object, "/metadata/deletionTimestamp").is_some() {
            return;
        }
        volume.backups += 1;
        let Some(taken) = time(object, "/status/snapshotCreatedAt")
            .or_else(|| time(object, "/status/backupCreatedAt"))
        else {
            return;
        };
        volume.newest = volume.newest.max(Some(taken));
        // One without data, or of an earlier volume of that name, says nothing about this one's filesystem.
        let has_data = text(object, "/status/size") != Some("0");
        if has_data && volume.made.is_some_and(|made| made < taken) {
            volume.oldest = Some(volume.oldest.map_or(taken, |oldest| oldest.min(taken)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::Settings;
    use crate::etcd::fake::{self, Message, from_member};
    use crate::host::Host;
    use serde_json::json;

    const URL: &str = "s3://key:secret@backups@eu/";

    fn backup(volume: &str, state: &str, taken: &str) -> Value {
        json!({
            "apiVersion": "longhorn.io/v1beta2", "kind": "Backup",
            "metadata": {"name": "backup-0b1f", "namespace": "longhorn-system",
                "labels": {"backup-volume": volume}},
            "spec": {"snapshotName": "s", "labels": null},
            "status": {"state": state, "progress": 100, "volumeName": volume, "size": "1048576",
                "snapshotCreatedAt": taken, "backupCreatedAt": "2022-12-14T00:00:31Z", "url": URL},
        })
    }

    fn cluster() -> Longhorn {
        let mut longhorn = Longhorn::default();
        longhorn.volume(
            &json!({"metadata": {"name": "pvc-1", "creationTimestamp": "2022-11-01T10:00:00Z"},
            "spec": {"Standby": false}, "status": {"state": "attached"}}),
        );
        longhorn.volume(&json!({"metadata": {"name": "dr"}, "spec": {"Standby": true}}));
        longhorn
    }

    #[test]
    fn complete_backups_are_counted_with_the_time_of_their_data() {
        let mut longhorn = cluster();
        longhorn.backup(&backup("pvc-1", "Completed", "2022-12-13T00:00:03Z"));
        longhorn.backup(&backup("pvc-1", "Completed", "2022-12-14T00:00:03Z"));
        longhorn.backup(&backup("pvc-1", "InProgress", "2022-12-15T00:00:03Z"));
        longhorn.backup(&backup("pvc-1", "Error", ""));
        longhorn.backup(&backup("gone", "Completed", "2022-12-14T00:00:03Z"));
        let volume = &longhorn.volumes["pvc-1"];
        assert_eq!(volume.backups, 2);
        assert_eq!(volume.newest, Some(1_670_976_003));
        assert_eq!(volume.oldest, Some(1_670_976_003 - 86_400));
        assert_eq!(longhorn.volumes.len(), 2);
        assert!(longhorn.volumes["dr"].standby && !volume.standby);
    }

    #[test]
    fn a_backup_of_an_earlier_volume_of_that_name_or_without_data_is_no_sign_of_a_wiped_one() {
        let mut longhorn = cluster();
        longhorn.backup(&backup("pvc-1", "Completed", "2022-10-01T00:00:00Z"));
        let mut empty = backup("pvc-1", "Completed", "2022-12-01T00:00:00Z");
        empty["status"]["size"] = "0".into();
        longhorn.backup(&empty);
        let volume = &longhorn.volumes["pvc-1"];
        assert_eq!((volume.backups, volume.oldest), (2, None));
        assert!(volume.newest.is_some());
    }

    #[test]
    fn fields_that_are_missing_or_of_another_kind_cost_nothing_but_themselves() {
        let mut longhorn = cluster();
        longhorn.backup(&json!({"status": {"state": "Completed", "volumeName": 7},
            "metadata": {"labels": {"backup-volume": "pvc-1"}}}));
        longhorn.backup(&json!({}));
        longhorn.backup(&json!(["x"]));
        longhorn.backup(&backup("pvc-1", "Completed", "yesterday"));
        longhorn.volume(&json!({"metadata": {}}));
        let volume = &longhorn.volumes["pvc-1"];
        assert_eq!(volume.backups, 2);
        assert_eq!(volume.newest, Some(1_670_976_031), "the time of the backup itself");
    }

    #[test]
    fn a_backup_that_is_being_deleted_does_not_count() {
        let mut longhorn = cluster();
        let mut going = backup("pvc-1", "Completed", "2022-12-13T00:00:03Z");
        going["metadata"]["deletionTimestamp"] = "2022-12-14T00:00:03Z".into();
        longhorn.backup(&going);
        assert_eq!(longhorn.volumes["pvc-1"].backups, 0);
    }

    #[test]
    fn a_target_without_an_address_is_none_and_an_address_is_not_kept() {
        let mut longhorn = cluster();
        longhorn.target(&json!({"spec": {"backupTargetURL": ""}}));
        assert!(!longhorn.has_target);
        longhorn.target(&json!({"spec": {"backupTargetURL": URL}}));
        longhorn.backup(&backup("pvc-1", "Completed", "2022-12-13T00:00:03Z"));
        assert!(longhorn.has_target);
        assert!(!format!("{longhorn:?}").contains("secret"));
    }

    /// Answers as kine does; before 0.11.9 it heeds the beginning of a range only `at_revisions`, or here never.
    async fn old_kine(at_revisions: bool) -> Registry {
        let prefix = "/registry/longhorn.io/volumes/";
        let names: Vec<_> =
            (0..250).map(|n| format!("{prefix}longhorn-system/pvc-{n:03}")).collect();
        let url = fake::serve(move |_, request| {
            let key = &request[2..2 + usize::from(request[1])];
            // Field 4 of a range request, behind the limit: its revision.
            let at_revision = request.windows(3).any(|part| part == [0x18, 100, 0x20]);
            let all = if key.starts_with(prefix.as_bytes()) { &names[..] } else { &[] };
            let heeds = at_revision && at_revisions;
            let from = if heeds { all.partition_point(|name| name.as_bytes() < key) } else { 0 };
            let mut answer = from_member(1);
            for name in all[from..].iter().take(100) {
                let object = json!({"metadata": {"name": name.rsplit('/').next()}}).to_string();
                let kv = Message::default().bytes(1, name.as_bytes()).bytes(5, object.as_bytes());
                answer = answer.message(2, kv);
            }
            Ok(answer.number(3, u64::from(from + 100 < all.len())).done())
        });
        let settings = Settings { endpoints: vec![url.await], ..Settings::default() };
        let access = settings.access(None, &Host::at("/")).unwrap().unwrap();
        Registry::new(&access, std::time::Duration::from_secs(5))
    }

    #[tokio::test]
    async fn a_kine_that_heeds_the_beginning_of_a_page_at_a_revision_only_is_asked_at_one() {
        let mut out = Batch::default();
        let longhorn = old_kine(true).await.read(&mut out).await.unwrap();
        assert_eq!((longhorn.volumes.len(), out.reasons()), (250, vec![]));
        assert!(longhorn.volumes.contains_key("pvc-249"));
    }

    #[tokio::test]
    async fn a_server_that_begins_anew_with_each_page_is_an_error_that_says_so() {
        let mut out = Batch::default();
        assert_eq!(old_kine(false).await.read(&mut out).await, None);
        let told: Vec<_> = out.failures().iter().map(ToString::to_string).collect();
        assert!(told[0].contains("begins anew with each page"), "{told:?}");
    }
}
