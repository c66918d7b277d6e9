#!/usr/bin/env python3
"""A cluster on this machine whose first member gets a dying disk, and the page that comes of it.

Three etcd members, an agent beside each, Prometheus with the shipped rules and Alertmanager with the shipped routes,
all on loopback. No rule, route or threshold is shortened; Prometheus only scrapes every 5 s instead of every 15 s.

The disk is a file with a filesystem of its own: a file on an ext4 that lies in a file. Breaking it means shutting
down the ext4 below (an ioctl that ext4 has for its own tests). From then on the kernel answers every read and write of
the disk with an I/O error, as it does when a real one dies. This needs root.

    demo.py [--binary FILE] [--break now] [--install]

Ctrl-C ends it at any time. Whatever it started, mounted and wrote is gone then.
"""

import argparse
import base64
import collections
import fcntl
import http.server
import json
import os
import pathlib
import queue
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PREFIX = "controlplane-demo."
NODES = ["cp-1", "cp-2", "cp-3"]
CAUSE = "ControlPlaneKernelIOErrors"
PACKAGES = {
    "etcd": "etcd-server",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "setpriv": "util-linux",
    "hostname": "hostname",
}
# ext4's own order to stop at once and to write nothing more, not even its journal.
EXT4_SHUTDOWN = 0x8004587D
WITHOUT_JOURNAL = struct.pack("I", 2)
# Seconds until something that starts must answer, and until the page must have come.
START_LIMIT = 60
PAGE_LIMIT = 180


class Stop(Exception):
    """Somebody wants the end."""


class Failed(Exception):
    """Something does not work; the text says what."""


stop_wanted = threading.Event()
started = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)


def go_on():
    if stop_wanted.is_set():
        raise Stop


def pause(seconds):
    stop_wanted.wait(seconds)
    go_on()


def run(*command, check=True):
    """A command of its own session: Ctrl-C is for us, who then clean up in order."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, start_new_session=True, timeout=60
    )
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def get(url, data=None, limit=3.0):
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=limit) as answer:
        return answer.read().decode()


def ask(url):
    """The JSON behind an address, or None."""
    try:
        return json.loads(get(url))
    except (OSError, ValueError):
        return None


def program(*names):
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise Failed(f"no program {names[0]} on this machine: `make demo` installs it from Debian's packages")


def install():
    """Installs what is missing, without letting its daemons start."""
    missing = []
    for name, package in PACKAGES.items():
        try:
            program(name)
        except Failed:
            missing.append(package)
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Failed(f"please install {', '.join(missing)}")
    say(f"installing {', '.join(missing)} from this system's packages, without starting them")
    policy = pathlib.Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            done = subprocess.run(["apt-get", *words], env=environment, stdout=subprocess.DEVNULL)
            go_on()
        if done.returncode != 0:
            raise Failed(f"apt-get install {' '.join(missing)} ended with {done.returncode}")
    finally:
        if ours:
            policy.unlink()


def remove_leftovers():
    """Removes what a demo left that was killed. Its programs die with it, unless one was just being started."""
    parent = pathlib.Path(tempfile.gettempdir())
    for folder in parent.glob(f"{PREFIX}*"):
        if os.path.exists(f"/proc/{folder.name.removeprefix(PREFIX).split('.')[0]}"):
            continue
        for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{folder}/".encode() in process.read_bytes():
                    os.kill(int(process.parent.name), signal.SIGKILL)
            except OSError:
                continue
        devices = [line.split(":")[0] for line in run(program("losetup"), "-a").stdout.splitlines() if f"{folder}/" in line]
        for name in (NODES[0], "below"):
            run("umount", "-l", folder / name, check=False)
        for device in devices:
            run(program("losetup"), "-d", device, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def free_port(taken=set()):
    """Below the range from which the kernel takes the ports of connections."""
    for port in range(18_000 + os.getpid() % 4_000, 32_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in taken:
            taken.add(port)
            return port
    raise Failed("no free port on 127.0.0.1")


class Demo:
    def __init__(self, binary):
        self.binary = binary
        self.daemons = {}
        self.mounts = []
        self.devices = []
        self.notices = queue.Queue()
        self.server = None
        self.writes = [0, 0]
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}."))

    # --- what it is made of

    def daemon(self, name, *command):
        """Starts a program that dies with us, however we die."""
        go_on()
        log = open(self.folder / f"{name}.log", "ab")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("ETCD_", "CONTROLPLANE_"))}
        words = [program("setpriv"), "--pdeathsig", "KILL", "--", *map(str, command)]
        self.daemons[name] = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=clean
        )
        log.close()

    def until(self, what, probe, limit=START_LIMIT):
        """Waits until `probe` gives something that is true."""
        since = time.monotonic()
        while True:
            for name, process in self.daemons.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
                    raise Failed(f"{name} has ended with {process.returncode}:\n" + "\n".join(log[-8:]))
            found = probe()
            if found:
                return found
            if time.monotonic() - since > limit:
                raise Failed(f"waited {limit} s for {what}")
            pause(0.2)

    def attach(self, file):
        """A loop device of which the kernel's log has no old errors: the agent reads that log from its beginning."""
        log = run("dmesg").stdout
        while len(self.devices) < 200:
            go_on()
            device = run(program("losetup"), "-f", "--show", file).stdout.strip()
            self.devices.append(device)
            name = os.path.basename(device)
            if not any(f"{name}{end}" in log for end in (",", ")", " ", "-")):
                return device
        raise Failed("the kernel's log has errors of every loop device: reboot, then try again")

    def mount(self, device, folder):
        go_on()
        folder.mkdir()
        self.mounts.append(folder)
        run("mount", device, folder)

    def disk(self):
        """The disk that will break, mounted where the first member has its data."""
        below, image, data = self.folder / "below", self.folder / "below.img", self.folder / NODES[0]
        for file, size, where in ((image, 700, below), (below / "disk.img", 512, data)):
            with open(file, "wb") as empty:
                empty.truncate(size << 20)
            run(program("mkfs.ext4"), "-q", "-F", file)
            device = self.attach(file)
            self.mount(device, where)
        return os.path.basename(device)

    def break_disk(self):
        below = os.open(self.folder / "below", os.O_RDONLY)
        try:
            fcntl.ioctl(below, EXT4_SHUTDOWN, WITHOUT_JOURNAL)
        finally:
            os.close(below)

    # --- the cluster and what watches it

    def etcd(self):
        self.clients = {node: f"http://127.0.0.1:{free_port()}" for node in NODES}
        peers = {node: f"http://127.0.0.1:{free_port()}" for node in NODES}
        for node in NODES:
            folder = self.folder / node
            folder.mkdir(exist_ok=True)
            self.daemon(
                f"etcd-{node}", program("etcd"), f"--name={node}", f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={self.clients[node]}", f"--advertise-client-urls={self.clients[node]}",
                f"--listen-peer-urls={peers[node]}", f"--initial-advertise-peer-urls={peers[node]}",
                "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in peers.items()),
            )
        for node in NODES:
            health = f"{self.clients[node]}/health"
            self.until(f"etcd on {node}", lambda: (ask(health) or {}).get("health") == "true")
        threading.Thread(target=self.write, daemon=True).start()

    def write(self):
        """Writes a small key twice a second, as a cluster does, and counts what came of it."""
        while not stop_wanted.wait(0.5):
            value = base64.b64encode(str(time.time()).encode()).decode()
            body = json.dumps({"key": base64.b64encode(b"/registry/leases/demo").decode(), "value": value})
            try:
                get(f"{self.clients['cp-2']}/v3/kv/put", body.encode())
                self.writes[0] += 1
            except OSError:
                self.writes[1] += 1

    def agents(self, device):
        self.pages = {}
        for node in NODES:
            bad = node == NODES[0]
            host = {
                "distribution": "etcd", "role": "server", "datastore": "etcd", "container_dirs": [],
                "datastore_dir": str(self.folder / node / "etcd"), "processes": ["etcd"] if bad else [],
            }
            config = {
                "host": {**host, "devices": [device]} if bad else host,
                "etcd": {"endpoints": [self.clients[node]]},
                # The kernel's log is one for all three, and this machine's units are none of the cluster's.
                "kernel": {"enabled": bad}, "systemd": {"enabled": False}, "snap": {"enabled": False},
                "fdatasync": {"paths": [str(self.folder / node)]}, "filesystem": {"paths": [str(self.folder / node)]},
            }
            file = self.folder / f"agent-{node}.yaml"
            file.write_text(json.dumps(config))
            address = f"127.0.0.1:{free_port()}"
            self.pages[node] = f"http://{address}"
            # A name of its own, as three machines would have.
            self.daemon(
                f"agent-{node}", program("unshare"), "--uts", "sh", "-c", f'hostname {node} && exec "$0" "$@"',
                self.binary, f"--config.file={file}", f"--web.listen-address={address}",
            )
        for node in NODES:
            self.until(f"the agent of {node}", lambda: self.ready(node))

    def ready(self, node):
        try:
            return get(f"{self.pages[node]}/-/ready")
        except OSError:
            return None

    def webhook(self):
        """What stands for a pager: it keeps what arrives."""
        notices = self.notices

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                notices.put((self.path.strip("/"), body["alerts"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def alerting(self):
        hook = self.webhook()
        routes = (REPOSITORY / "alerts/alertmanager.yaml").read_text()
        for receiver in ("page", "ticket", "watchdog"):
            shipped = f"http://{receiver}.example/controlplane"
            if shipped not in routes:
                raise Failed(f"alerts/alertmanager.yaml has no {shipped}")
            routes = routes.replace(shipped, f"{hook}/{receiver}")
        file = self.folder / "alertmanager.yaml"
        file.write_text(routes)
        address = f"127.0.0.1:{free_port()}"
        self.alertmanager = f"http://{address}"
        self.daemon(
            "alertmanager", program("prometheus-alertmanager", "alertmanager"), f"--config.file={file}",
            f"--storage.path={self.folder / 'alertmanager'}", f"--web.listen-address={address}",
            "--cluster.listen-address=",
        )
        targets = [
            {"targets": [page.removeprefix("http://")], "labels": {"cluster": "demo", "instance": f"{node}:10379"}}
            for node, page in self.pages.items()
        ]
        config = {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "rule_files": [str(REPOSITORY / "alerts/*.rules.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]},
            "scrape_configs": [{"job_name": "controlplane-exporter", "static_configs": targets}],
        }
        file = self.folder / "prometheus.yaml"
        file.write_text(json.dumps(config))
        address = f"127.0.0.1:{free_port()}"
        self.prometheus = f"http://{address}"
        self.daemon(
            "prometheus", program("prometheus"), f"--config.file={file}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}", f"--web.listen-address={address}",
        )
        count = f"{self.prometheus}/api/v1/query?query=count(up==1)"
        self.until("three agents in Prometheus", lambda: '"3"' in json.dumps(ask(count) or {}))
        say("Prometheus scrapes three agents")

    # --- the fault

    def page(self):
        """Breaks the disk, tells what is seen where, and gives the page that arrives."""
        global started
        print("The disk under cp-1 breaks: from now on every read and write of it is an I/O error.", flush=True)
        started = time.monotonic()
        self.break_disk()
        told = set()

        def tell(key, text):
            if key not in told:
                told.add(key)
                say(text)

        while time.monotonic() - started < PAGE_LIMIT:
            while not self.notices.empty():
                receiver, alerts = self.notices.get()
                names = {alert["labels"]["alertname"] for alert in alerts}
                if receiver == "page" and CAUSE in names:
                    say("THE PAGE has arrived\n")
                    return alerts
                tell((receiver, *names), f"{', '.join(names)} has arrived at the receiver {receiver}")
            etcd = self.daemons["etcd-cp-1"]
            if etcd.poll() is not None:
                tell("etcd", f"etcd on cp-1 has ended ({etcd.returncode}): it cannot write its log any more")
            for verdict in (ask(f"{self.pages['cp-1']}/api/v1/status") or {}).get("verdicts", []):
                if verdict["alert"] == CAUSE and verdict["health"] == "critical":
                    tell("agent", f"the agent of cp-1 knows: {verdict['what']}, {verdict['figure']}")
            rules = (ask(f"{self.prometheus}/api/v1/alerts") or {}).get("data", {}).get("alerts", [])
            if any(one["labels"]["alertname"] == CAUSE and one["state"] == "firing" for one in rules):
                tell("prometheus", f"Prometheus fires {CAUSE}")
            if any(one["labels"]["alertname"] == CAUSE for one in ask(f"{self.alertmanager}/api/v2/alerts") or []):
                tell("alertmanager", "Alertmanager has it, and waits 30 s for more of the same node (group_wait)")
            tens = int(time.monotonic() - started) // 10
            if tens:
                tell(tens, f"… writes through cp-2 so far: {self.writes[0]} done, {self.writes[1]} failed")
            pause(0.3)
        raise Failed(f"no page within {PAGE_LIMIT} s")

    def show(self, alerts):
        for alert in alerts:
            labels, texts = alert["labels"], alert["annotations"]
            print(f"    {labels['severity'].upper()}  {labels['alertname']}  {labels.get('instance', 'the cluster')}")
            print(f"      summary:     {texts['summary']}")
            print(f"      description: {texts['description']}")
            print(f"      runbook:     {texts['runbook_url']}\n")
        follow = collections.Counter(
            alert["labels"]["alertname"]
            for alert in ask(f"{self.alertmanager}/api/v2/alerts") or []
            if alert["status"]["inhibitedBy"]
        )
        if follow:
            say("these follow from it, and page nobody: " + ", ".join(sorted(follow)))
        say(f"the other two members go on: {self.writes[0]} writes done, {self.writes[1]} failed")

    # --- the end

    def end(self):
        """Ends and removes everything; gives what is still there."""
        stop_wanted.set()
        for process in self.daemons.values():
            process.terminate()
        # An etcd that has lost its peers takes its time; nothing of it is kept.
        until = time.monotonic() + 3
        for process in self.daemons.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        for folder in reversed(self.mounts):
            if os.path.ismount(folder) and run("umount", folder, check=False).returncode != 0:
                run("umount", "-l", folder, check=False)
        for device in reversed(self.devices):
            run(program("losetup"), "-d", device, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        left = [name for name, process in self.daemons.items() if process.poll() is None]
        left += [str(folder) for folder in self.mounts if os.path.ismount(folder)]
        left += [line for line in run(program("losetup"), "-a").stdout.splitlines() if str(self.folder) in line]
        return left + [str(self.folder)] * self.folder.exists()


def wait_for_enter(text):
    print(text, flush=True)
    while True:
        go_on()
        if select.select([sys.stdin], [], [], 0.3)[0]:
            sys.stdin.readline()
            return


def play(demo, at_once):
    say(f"everything is below {demo.folder}")
    device = demo.disk()
    say(f"a disk for cp-1: {device}")
    demo.etcd()
    say("etcd has three members")
    demo.agents(device)
    say("an agent watches each")
    demo.alerting()
    print()
    for node, page in demo.pages.items():
        print(f"    {node}           {page}/")
    print(f"    Prometheus     {demo.prometheus}/alerts\n    Alertmanager   {demo.alertmanager}/\n", flush=True)
    if not at_once:
        wait_for_enter("Press Enter to break the disk under cp-1, Ctrl-C to end.")
    demo.show(demo.page())
    if not at_once:
        wait_for_enter(f"Look at {demo.pages['cp-1']}/ as well. Enter or Ctrl-C ends the demo.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=REPOSITORY / "target/release/controlplane-exporter", type=pathlib.Path)
    parser.add_argument("--break", dest="when", choices=["enter", "now", ""], default="enter")
    parser.add_argument("--install", action="store_true", help="install what is missing with apt-get")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop_wanted.set())
    demo, code = None, 0
    try:
        if os.geteuid() != 0:
            raise Failed("breaking a disk needs root (loop devices, mounts, the kernel's log): sudo make demo")
        if not options.binary.exists():
            raise Failed(f"there is no {options.binary}: make demo builds it")
        if options.install:
            install()
        for name in PACKAGES:
            program(name, *(["alertmanager"] if name == "prometheus-alertmanager" else []))
        remove_leftovers()
        demo = Demo(options.binary.resolve())
        play(demo, options.when == "now" or not sys.stdin.isatty())
    except Stop:
        say("stopped")
        code = 130
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        if demo:
            left = demo.end()
            say(f"LEFT BEHIND: {', '.join(left)}" if left else "everything is ended, unmounted and removed")
            code = code or (1 if left else 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
