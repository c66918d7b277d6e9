//! One connection to systemd, over the bus or over its private socket.
//!
//! A spawned task reads the signals of the watched units at once, for zbus stops reading the
//! socket while any of its streams is full, and keeps the exits in a bounded queue that the
//! sampler empties on each run. Nothing is cached: what is asked is asked of systemd.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use zbus::address::transport::{Transport, Unix, UnixSocket};
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{
    Address, Connection, DynamicType, Message, MessageStream, OwnedObjectPath, Variant, fdo,
};

use super::private::Private;
use super::track::Exit;
use crate::sample::SampleError;

/// No more exits than this wait between two runs; then the oldest go.
const QUEUE: usize = 1_024;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: &str = "/org/freedesktop/DBus";

/// Where systemd is reached.
#[derive(Debug, Clone)]
pub(super) struct Target {
    address: Address,
    /// systemd itself at the other end, and no bus between.
    private: bool,
}

impl Target {
    /// The socket of a bus.
    pub(super) fn socket(path: PathBuf) -> Self {
        let unix = Unix::new(UnixSocket::File(path));
        Self { address: Address::new(Transport::Unix(unix)), private: false }
    }

    /// The bus of the user the agent runs as.
    pub(super) fn user() -> zbus::Result<Self> {
        Ok(Self::from(Address::session()?))
    }

    /// Any D-Bus address.
    pub(super) fn parse(address: &str) -> zbus::Result<Self> {
        Ok(Self::from(address.parse::<Address>()?))
    }

    fn path(&self) -> Option<&Path> {
        match self.address.transport() {
            Transport::Unix(unix) => match unix.path() {
                UnixSocket::File(path) => Some(path),
                _ => None,
            },
            _ => None,
        }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        match self.path() {
            Some(path) if self.private => {
                Builder::socket(Private::connect(path).await?).p2p().build().await
            }
            _ => Builder::address(self.address.clone()).build().await,
        }
    }

    /// A failure in the words of the catalogue; permission names its fix.
    fn error(&self, error: &zbus::Error) -> SampleError {
        let denied = |what: &dyn std::fmt::Display| {
            let fix = if self.private {
                "only root may use systemd's private socket; set `systemd.bus: system`"
            } else {
                "let the agent connect to this bus; in a container mount its directory and set \
                 the AppArmor profile to Unconfined"
            };
            SampleError::Permission(format!("{self}: {what}; {fix}"))
        };
        match error {
            zbus::Error::Connection(error, _) | zbus::Error::InputOutput(error) => {
                match (error.kind(), self.path()) {
                    (io::ErrorKind::PermissionDenied, _) => denied(&error),
                    (io::ErrorKind::NotFound, Some(path)) => {
                        SampleError::read(path, io::Error::from(io::ErrorKind::NotFound))
                    }
                    _ => SampleError::call(self.to_string(), error),
                }
            }
            zbus::Error::FDO(error) => match **error {
                fdo::Error::AccessDenied(_) | fdo::Error::AuthFailed(_) => denied(error),
                _ => SampleError::call(self.to_string(), error),
            },
            // systemd closes the private socket before anybody else could say who he is.
            zbus::Error::Handshake(text) if self.private => denied(text),
            _ => SampleError::call(self.to_string(), error),
        }
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        let mut target = Self { address, private: false };
        target.private = target.path().is_some_and(|path| path.ends_with("systemd/private"));
        target
    }
}

/// The socket, or else the address.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path() {
            Some(path) => path.display().fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// One line of systemd's list of units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// The name it was asked for, or the one that matched.
    pub(super) name: String,
    /// The name systemd knows it by: that of the target, if `name` is an alias.
    pub(super) id: String,
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub(super) load_state: String,
    /// `active`, `failed`, …
    pub(super) active_state: String,
    /// The unit's object.
    pub(super) path: String,
}

/// What else is known about one unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Details {
    /// `StateChangeTimestamp`, in microseconds of Unix time.
    pub(super) since: u64,
    /// `NRestarts`, from systemd 235 on, of services.
    pub(super) restarts: Option<u32>,
    /// The last exit, if it was looked for and the next process has not started.
    pub(super) exit: Option<Exit>,
    /// Why a failed service failed (`exit-code`, `signal`, `start-limit-hit`).
    pub(super) result: Option<String>,
}

/// A unit as the manager lists it: id, description, load state, active state, sub state, the unit
/// it follows, object, job id, job type, job object.
type Line =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// What the reading task and the sampler share.
#[derive(Debug, Default)]
struct Queue {
    /// Objects whose exits are kept; over the private socket systemd sends those of all units.
    watched: HashSet<String>,
    /// Object, sender and exit, in the order of their signals.
    exits: VecDeque<(String, Option<String>, Exit)>,
    /// How many did not fit since the last run.
    lost: u64,
}

impl Queue {
    fn push(&mut self, path: String, sender: Option<String>, exit: Exit) {
        let same = |(known, _, last): &(String, Option<String>, Exit)| {
            (known == &path).then_some(last == &exit)
        };
        // The same exit comes with every change of the unit until the next process starts.
        if self.exits.iter().rev().find_map(same) == Some(true) {
            return;
        }
        if self.exits.len() >= QUEUE {
            self.exits.pop_front();
            self.lost += 1;
        }
        self.exits.push_back((path, sender, exit));
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Bus {
    target: Target,
    connection: Connection,
    /// systemd's name, which nobody has on its private socket.
    destination: Option<&'static str>,
    queue: Arc<Mutex<Queue>>,
    reader: JoinHandle<()>,
    /// systemd's own addresses on the bus, now and before: any client may send signals.
    owners: [Option<String>; 2],
}

impl Drop for Bus {
    fn drop(&mut self) {
        // The task holds the connection.
        self.reader.abort();
    }
}

impl Bus {
    /// Connects and asks for signals. The caller sets the deadline.
    pub(super) async fn connect(target: &Target) -> Result<Self, SampleError> {
        let connection = target.connect().await.map_err(|error| target.error(&error))?;
        let queue = Arc::default();
        let stream = MessageStream::from(&connection);
        let bus = Self {
            target: target.clone(),
            connection,
            destination: (!target.private).then_some(SYSTEMD),
            reader: tokio::spawn(read_signals(stream, Arc::clone(&queue))),
            queue,
            owners: [None, None],
        };
        bus.call(OBJECT, MANAGER, "Subscribe", &()).await.map_err(|e| bus.error(&e))?;
        Ok(bus)
    }

    /// Whether the other end has gone away.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn error(&self, error: &zbus::Error) -> SampleError {
        self.target.error(error)
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<Message>
    where
        B: serde::Serialize + DynamicType,
    {
        let destination = self.destination;
        self.connection.call_method(destination, path, Some(interface), method, body).await
    }

    /// The units of these names, found or not, and those loaded ones that match the patterns.
    pub(super) async fn list(
        &mut self,
        names: &[String],
        patterns: &[String],
    ) -> Result<Vec<Listed>, SampleError> {
        let listed = self.try_list(names, patterns).await.map_err(|e| self.error(&e))?;
        Ok(listed)
    }

    async fn try_list(
        &mut self,
        names: &[String],
        patterns: &[String],
    ) -> zbus::Result<Vec<Listed>> {
        let mut all = Vec::new();
        if !names.is_empty() {
            let reply = self.call(OBJECT, MANAGER, "ListUnitsByNames", &(names,)).await?;
            self.note_owner(&reply);
            let lines: Vec<Line> = reply.body().deserialize()?;
            // Asked by an alias, systemd answers with the name behind it, in the order asked.
            let in_order = lines.len() == names.len();
            for (i, line) in lines.into_iter().enumerate() {
                let name = if in_order { names[i].clone() } else { line.0.clone() };
                all.push(listed(name, line));
            }
        }
        if !patterns.is_empty() {
            // Units in any state, those that only a reference keeps in memory included.
            let body = (Vec::<String>::new(), patterns);
            let reply = self.call(OBJECT, MANAGER, "ListUnitsByPatterns", &body).await?;
            self.note_owner(&reply);
            let lines: Vec<Line> = reply.body().deserialize()?;
            all.extend(lines.into_iter().map(|line| listed(line.0.clone(), line)));
        }
        Ok(all)
    }

    fn note_owner(&mut self, reply: &Message) {
        let owner = reply.header().sender().map(ToString::to_string);
        if self.owners[0] != owner {
            self.owners.swap(0, 1);
            self.owners[0] = owner;
        }
    }

    /// Has the exits of these objects, and of no others, signalled from now on. Returns those
    /// whose last exit must be read because signals of it may have been missed, and how many
    /// signals were lost.
    pub(super) async fn watch(&mut self, paths: HashSet<String>) -> (HashSet<String>, u64) {
        let (watched, lost) = {
            let mut queue = lock(&self.queue);
            (queue.watched.clone(), std::mem::take(&mut queue.lost))
        };
        for gone in watched.difference(&paths) {
            lock(&self.queue).watched.remove(gone);
            // A rule that stays only costs a few signals that nobody keeps.
            drop(self.match_rule("RemoveMatch", gone).await);
        }
        let mut unsure = if lost > 0 { paths.clone() } else { HashSet::new() };
        for new in paths.difference(&watched) {
            // Without signals its properties are read each time.
            if self.match_rule("AddMatch", new).await.is_ok() {
                lock(&self.queue).watched.insert(new.clone());
            }
            unsure.insert(new.clone());
        }
        (unsure, lost)
    }

    async fn match_rule(&self, method: &str, path: &str) -> zbus::Result<()> {
        if self.target.private {
            return Ok(());
        }
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{path}',interface='{PROPERTIES}',\
             member='PropertiesChanged',arg0='{SERVICE}'"
        );
        self.connection.call_method(Some(BUS), BUS_OBJECT, Some(BUS), method, &(rule,)).await?;
        Ok(())
    }

    /// What else is known about a unit. Only if `last_exit`, all properties of the service are
    /// read at once: for some of them systemd reads files, but one by one they could belong to
    /// two different processes.
    pub(super) async fn details(
        &self,
        unit: &Listed,
        last_exit: bool,
    ) -> Result<Details, SampleError> {
        self.try_details(unit, last_exit).await.map_err(|e| self.error(&e))
    }

    async fn try_details(&self, unit: &Listed, last_exit: bool) -> zbus::Result<Details> {
        let since = self.get(unit, UNIT, "StateChangeTimestamp");
        let since = since.await?.and_then(|reply| value::<u64>(&reply)).unwrap_or(0);
        let mut details = Details { since, ..Details::default() };
        if !is_service(&unit.id) {
            return Ok(details);
        }
        if last_exit {
            let reply = self.call(&unit.path, PROPERTIES, "GetAll", &(SERVICE,)).await?;
            let body = reply.body();
            let properties: HashMap<&str, Variant<'_>> = body.deserialize()?;
            details.restarts = properties.get("NRestarts").and_then(|v| v.downcast_ref().ok());
            details.exit = exit(&properties);
        } else {
            let reply = self.get(unit, SERVICE, "NRestarts").await?;
            details.restarts = reply.and_then(|reply| value(&reply));
        }
        if unit.active_state == "failed" {
            let reply = self.get(unit, SERVICE, "Result").await?;
            details.result = reply.and_then(|reply| value(&reply));
        }
        Ok(details)
    }

    /// One property; nothing when this systemd does not have it.
    async fn get(
        &self,
        unit: &Listed,
        interface: &str,
        name: &str,
    ) -> zbus::Result<Option<Message>> {
        match self.call(&unit.path, PROPERTIES, "Get", &(interface, name)).await {
            Ok(reply) => Ok(Some(reply)),
            Err(zbus::Error::FDO(error)) if is_unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The exits signalled since the last call, by object, in their order.
    pub(super) fn take_exits(&self) -> HashMap<String, Vec<Exit>> {
        let mut by_path: HashMap<String, Vec<Exit>> = HashMap::new();
        for (path, sender, exit) in std::mem::take(&mut lock(&self.queue).exits) {
            if self.target.private || (sender.is_some() && self.owners.contains(&sender)) {
                by_path.entry(path).or_default().push(exit);
            }
        }
        by_path
    }
}

/// Whether a unit is of the kind that is restarted.
pub(super) fn is_service(id: &str) -> bool {
    Path::new(id).extension().is_some_and(|kind| kind == "service")
}

fn listed(name: String, line: Line) -> Listed {
    let (id, _, load_state, active_state, _, _, path, ..) = line;
    Listed { name, id, load_state, active_state, path: path.to_string() }
}

fn is_unknown(error: &fdo::Error) -> bool {
    matches!(error, fdo::Error::UnknownProperty(_) | fdo::Error::UnknownInterface(_))
}

/// The value in the answer to `Get`; nothing when it is of another type.
fn value<T>(reply: &Message) -> Option<T>
where
    T: for<'a> TryFrom<&'a Variant<'a>>,
{
    let body = reply.body();
    let variant: Variant<'_> = body.deserialize().ok()?;
    T::try_from(&variant).ok()
}

fn exit(properties: &HashMap<&str, Variant<'_>>) -> Option<Exit> {
    let code = properties.get("ExecMainCode")?.downcast_ref::<i32>().ok()?;
    let status = properties.get("ExecMainStatus")?.downcast_ref::<i32>().ok()?;
    let at = properties.get("ExecMainExitTimestamp").and_then(|v| v.downcast_ref::<u64>().ok());
    Exit::from_raw(code, status, at.unwrap_or(0))
}

/// Keeps the exits among all that arrives, until the connection ends.
async fn read_signals(mut stream: MessageStream, queue: Arc<Mutex<Queue>>) {
    while let Some(message) = stream.next().await {
        let Ok(message) = message else { continue };
        let Some(path) = changed(&message) else { continue };
        if !lock(&queue).watched.contains(&path) {
            continue;
        }
        if let Some(exit) = signalled(&message) {
            let sender = message.header().sender().map(ToString::to_string);
            lock(&queue).push(path, sender, exit);
        }
    }
}

/// The object that a `PropertiesChanged` is about.
fn changed(message: &Message) -> Option<String> {
    if message.message_type() != Type::Signal {
        return None;
    }
    let header = message.header();
    let is_change = header.member().is_some_and(|m| m.as_str() == "PropertiesChanged")
        && header.interface().is_some_and(|i| i.as_str() == PROPERTIES);
    is_change.then(|| header.path().map(ToString::to_string)).flatten()
}

/// The exit that a `PropertiesChanged` of a service tells of.
fn signalled(message: &Message) -> Option<Exit> {
    let body = message.body();
    let (interface, changed, _): (&str, HashMap<&str, Variant<'_>>, Vec<&str>) =
        body.deserialize().ok()?;
    (interface == SERVICE).then(|| exit(&changed)).flatten()
}
