//! `make demo`, run as a person runs it: to its end, and ended half-way. Nothing may be left of it.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab;
use crate::lab::process::{Daemon, bound_command, output, spawn};

const SECOND: Duration = Duration::from_secs(1);

/// The folder of the demo's files.
fn temporary() -> tempfile::TempDir {
    lab::temp_dir("demo")
}

fn script() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = env!("CARGO_BIN_EXE_controlplane-exporter");
    format!("python3 -B {}/deploy/demo/demo.py --binary {binary}", root.display())
}

fn surroundings(command: &mut Command, folder: &Path) {
    let path = std::env::var("PATH").unwrap();
    let etcd = lab::cached("etcd-3.5/usr/bin");
    command.env("PATH", format!("{}:{path}", etcd.display())).env("TMPDIR", folder);
}

/// Fails when a file, a mount, a loop device or a process of the demo is there.
#[track_caller]
fn nothing_is_left(folder: &Path) {
    let name = folder.to_str().unwrap();
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.is_empty(), "files: {files:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(name)).collect();
    assert!(mounts.is_empty(), "mounts: {mounts:?}");
    for entry in std::fs::read_dir("/sys/block").unwrap() {
        let file = entry.unwrap().path().join("loop/backing_file");
        let backing = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(!backing.contains(name), "{}: {backing}", file.display());
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        assert!(!words.contains(name), "process {}: {words}", entry.path().display());
    }
}

/// The demo on a terminal.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(folder: &Path) -> Self {
        let mut command = bound_command(lab::program("script"));
        command.args(["-qefc", &script(), "/dev/null"]);
        surroundings(&mut command, folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn(command);
        let keys = child.stdin.take().unwrap();
        let mut shown = child.stdout.take().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let copy = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = shown.read(&mut bytes) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { child, keys, screen }
    }

    fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait(&self, text: &str, limit: Duration) {
        lab::wait_for(text, limit, || {
            let screen = self.screen();
            if screen.contains(text) { Ok(()) } else { Err(screen) }
        });
    }

    fn press(&mut self, key: &[u8]) {
        self.keys.write_all(key).unwrap();
        self.keys.flush().unwrap();
    }

    /// The exit code of what ran, within half a minute.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                std::thread::sleep(SECOND / 5);
                return (status.code(), self.screen());
            }
            assert!(started.elapsed() < 30 * SECOND, "it still runs:\n{}", self.screen());
            std::thread::sleep(SECOND / 20);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone is a hang-up, upon which the demo clears up.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_broken_disk_pages_with_its_runbook_and_nothing_is_left() {
    let _turn = lab::alone();
    lab::need_root("a disk that breaks");
    let folder = temporary();
    let mut command = bound_command(lab::program("sh"));
    command.args(["-c", &format!("exec {} --break now", script())]);
    surroundings(&mut command, folder.path());
    let said = output(command, 150 * SECOND);
    let text = format!("{}{}", said.stdout, said.stderr);
    eprintln!("{text}");
    assert!(said.status.success(), "{}: {text}", said.status);
    let (before, page) = text.split_once("THE PAGE has arrived").expect("a page");
    assert!(before.contains("etcd on cp-1 has ended"), "{text}");
    assert!(before.contains("the agent of cp-1 knows: last I/O error of loop"), "{text}");
    for part in [
        "CRITICAL  ControlPlaneKernelIOErrors  cp-1:10379",
        "summary:     The kernel reports I/O errors on the datastore's disk.",
        "description: loop",
        "alerts/runbooks/ControlPlaneKernelIOErrors.md",
        "everything is ended, unmounted and removed",
    ] {
        assert!(page.contains(part), "{part}: {text}");
    }
    nothing_is_left(folder.path());
}

#[test]
fn ctrl_c_leaves_nothing_and_the_next_run_clears_up_after_one_that_was_killed() {
    let _turn = lab::alone();
    lab::need_root("a disk that breaks");
    let folder = temporary();
    // Killed without a chance to clear up.
    let mut command = bound_command(lab::program("sh"));
    command.args(["-c", &format!("exec {}", script())]);
    surroundings(&mut command, folder.path());
    let log = lab::temp_dir("log");
    let mut killed = Daemon::start("demo", command, &log.path().join("log"));
    lab::wait_for("a disk", 30 * SECOND, || {
        let log = killed.log();
        if log.contains("a disk for cp-1") { Ok(()) } else { Err(log) }
    });
    killed.kill();
    assert!(std::fs::read_dir(folder.path()).unwrap().count() == 1, "nothing to clear up");

    // Ended while it starts.
    let mut early = Terminal::start(folder.path());
    early.wait("a disk for cp-1", 30 * SECOND);
    early.press(b"\x03");
    let (code, screen) = early.end();
    assert_eq!(code, Some(130), "{screen}");
    assert!(screen.contains("everything is ended, unmounted and removed"), "{screen}");
    nothing_is_left(folder.path());

    // Ended when the disk is broken, which Enter does.
    let mut late = Terminal::start(folder.path());
    late.wait("Press Enter to break the disk", 90 * SECOND);
    std::thread::sleep(SECOND);
    assert!(!late.screen().contains("breaks: from now on"), "{}", late.screen());
    late.press(b"\n");
    late.wait("the agent of cp-1 knows", 30 * SECOND);
    late.press(b"\x03");
    let (code, screen) = late.end();
    assert_eq!(code, Some(130), "{screen}");
    assert!(!screen.contains("LEFT BEHIND"), "{screen}");
    nothing_is_left(folder.path());
}

#[test]
fn without_root_it_says_what_it_needs() {
    let _turn = lab::together();
    let mut command = bound_command(lab::program("setpriv"));
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c"]);
    // The script itself may lie where only root reads.
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo/demo.py"));
    let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let place = folder.path().join("deploy/demo");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("demo.py"), text.unwrap()).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(65534), None).unwrap();
    command.arg(format!("python3 -B {}/demo.py", place.display()));
    let said = output(command, 20 * SECOND);
    assert_eq!(said.status.code(), Some(1), "{}", said.stderr);
    assert!(
        said.stderr.contains("needs root") && said.stderr.contains("sudo make demo"),
        "{}",
        said.stderr
    );
}
