//! A receiver of Alertmanager's webhooks that keeps everything with the time at which it came.

use super::alertmanager::labels;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One alert of one notification.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) arrived: Instant,
    /// The path it was sent to: the tests name a path after each receiver.
    pub(crate) path: String,
    /// False when it says that the alert has ended.
    pub(crate) firing: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Notice {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

type Kept = Arc<Mutex<Vec<Notice>>>;

/// Listens on loopback until the test process ends.
pub(crate) struct Webhook {
    address: SocketAddr,
    kept: Kept,
}

impl Webhook {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port for the webhook");
        let address = listener.local_addr().expect("the port");
        let kept = Kept::default();
        let shared = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                // What is no notification is answered with its reason; Alertmanager logs it.
                std::thread::spawn(move || receive(stream, &shared).ok());
            }
        });
        Self { address, kept }
    }

    /// The address for a receiver of this name.
    pub(crate) fn url(&self, receiver: &str) -> String {
        format!("http://{}/{receiver}", self.address)
    }

    /// Everything that came so far, oldest first.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first notice from `since` on that fits.
    pub(crate) fn first(&self, since: Instant, fits: impl Fn(&Notice) -> bool) -> Option<Notice> {
        self.notices().into_iter().find(|notice| notice.arrived >= since && fits(notice))
    }
}

fn receive(stream: TcpStream, kept: &Kept) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or_default();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let arrived = Instant::now();
    let answer = match serde_json::from_slice::<serde_json::Value>(&body) {
        Ok(message) => {
            let alerts = message["alerts"].as_array().into_iter().flatten();
            let notices = alerts.map(|alert| Notice {
                arrived,
                path: path.clone(),
                firing: alert["status"] == "firing",
                labels: labels(&alert["labels"]),
                annotations: labels(&alert["annotations"]),
            });
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(notices);
            "200 OK\r\n"
        }
        Err(_) => "400 Bad Request\r\n",
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.1 {answer}Content-Length: 0\r\nConnection: close\r\n\r\n")
}
