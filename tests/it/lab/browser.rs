//! Chromium without a window, led over its own protocol: messages with a zero byte after each, through two pipes.

use super::process::{bound_command, spawn};
use super::{program, tail, temp_dir};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Nothing that a page or the browser is asked for takes longer.
const LIMIT: Duration = Duration::from_secs(40);

/// Characters of base64 in their order.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A running browser. Closed when dropped.
pub(crate) struct Browser {
    child: Child,
    orders: ChildStdin,
    messages: mpsc::Receiver<Value>,
    last: u64,
    /// Events of a page that nobody has looked at yet.
    events: Vec<Value>,
    folder: tempfile::TempDir,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) width: u32,
    pub(crate) dark: bool,
    pub(crate) scripts: bool,
}

impl Browser {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = temp_dir("browser");
        let log = std::fs::File::create(folder.path().join("log")).expect("the browser's log");
        let mut command = bound_command(program("sh"));
        // It reads orders from descriptor 3 and answers on 4.
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2"]);
        command.arg(program("chromium")).args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-breakpad",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        command.arg("about:blank");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = spawn(command);
        let orders = child.stdin.take().expect("a pipe for orders");
        let mut answers = BufReader::new(child.stdout.take().expect("a pipe for answers"));
        let (send, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while answers.read_until(0, &mut bytes).is_ok_and(|length| length > 0) {
                bytes.pop();
                let message = serde_json::from_slice(&bytes).expect("the browser speaks JSON");
                if send.send(message).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        Self { child, orders, messages, last: 0, events: Vec::new(), folder }
    }

    /// The next message. Fails when none comes.
    #[track_caller]
    fn message(&mut self, waits_for: &str, until: Instant) -> Value {
        let left = until.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).unwrap_or_else(|error| {
            let log = tail(&self.folder.path().join("log"), 20);
            panic!("waited for the browser's {waits_for}: {error}; its log ends with\n{log}")
        })
    }

    /// Gives an order and the browser's answer to it.
    #[track_caller]
    fn call(&mut self, session: &str, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut order = json!({"id": self.last, "method": method, "params": parameters});
        if !session.is_empty() {
            order["sessionId"] = session.into();
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        self.orders.write_all(&bytes).expect("the browser takes orders");
        let until = Instant::now() + LIMIT;
        loop {
            let mut message = self.message(method, until);
            if message["id"] == self.last {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// Opens an address and waits until all of it is there.
    #[track_caller]
    pub(crate) fn open(&mut self, url: &str, view: View) -> Page<'_> {
        let target = self.call("", "Target.createTarget", json!({"url": "about:blank"}));
        let target = target["targetId"].clone();
        let attach = json!({"targetId": target, "flatten": true});
        let session = self.call("", "Target.attachToTarget", attach)["sessionId"].take();
        let session = session.as_str().expect("a session").to_owned();
        self.events.clear();
        let mut page = Page { browser: self, view, target, session };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        let size = json!({"width": view.width, "height": 800, "deviceScaleFactor": 1, "mobile": view.width < 600});
        page.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if view.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        page.call("Emulation.setEmulatedMedia", json!({"features": features}));
        page.call("Emulation.setScriptExecutionDisabled", json!({"value": !view.scripts}));
        let went = page.call("Page.navigate", json!({"url": url}));
        assert!(went.get("errorText").is_none(), "{url}: {}", went["errorText"]);
        page.wait("Page.loadEventFired");
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.orders.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0").ok();
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None))
            && started.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A page in a browser. Closed when dropped.
pub(crate) struct Page<'a> {
    browser: &'a mut Browser,
    pub(crate) view: View,
    target: Value,
    session: String,
}

impl Page<'_> {
    #[track_caller]
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let session = self.session.clone();
        self.browser.call(&session, method, parameters)
    }

    /// Waits for an event, which may have come already.
    #[track_caller]
    fn wait(&mut self, event: &str) {
        let until = Instant::now() + LIMIT;
        while !self.browser.events.iter().any(|message| message["method"] == event) {
            let message = self.browser.message(event, until);
            self.browser.events.push(message);
        }
    }

    /// The parameters of all events of this name so far.
    fn events(&self, name: &str) -> Vec<&Value> {
        let all = self.browser.events.iter();
        all.filter(|event| event["method"] == name).map(|event| &event["params"]).collect()
    }

    /// The value of an expression, or of what it promises.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let order = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", order);
        let wrong = &answer["exceptionDetails"];
        let start: String = expression.chars().take(200).collect();
        assert!(wrong.is_null(), "{start}: {wrong}");
        answer["result"]["value"].take()
    }

    /// Every address that the page has asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        let asked = self.events("Network.requestWillBeSent").into_iter();
        asked.map(|event| event["request"]["url"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What the browser and the page have to complain about.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let names = ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"];
        names.iter().flat_map(|name| self.events(name)).map(Value::to_string).collect()
    }

    /// An image of the whole page, however long it is.
    #[track_caller]
    pub(crate) fn picture(&mut self, file: &Path) {
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].take();
        let clip =
            json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let order = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let answer = self.call("Page.captureScreenshot", order);
        let image = decoded(answer["data"].as_str().expect("an image"));
        std::fs::write(file, image).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let target = json!({"targetId": self.target});
            self.browser.call("", "Target.closeTarget", target);
        }
    }
}

/// What base64 stands for.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.bytes().take_while(|c| *c != b'=') {
        let value = BASE64.iter().position(|c| *c == character).expect("base64");
        bits = bits << 6 | u32::try_from(value).expect("below 64");
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).expect("a byte"));
        }
    }
    bytes
}
