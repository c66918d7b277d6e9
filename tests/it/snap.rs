//! The `snap` sampler on a tree with mounts in it.

use std::path::Path;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::disk::{Disk, Kind};
use crate::lab::process::run;

const USAGE: &str = "controlplane_snap_disk_usage_bytes";
const SECOND: Duration = Duration::from_secs(1);

/// Unmounted when dropped.
struct Bind<'a>(&'a Path);

impl Drop for Bind<'_> {
    fn drop(&mut self) {
        run("umount", ["-l".as_ref(), self.0.as_os_str()]);
    }
}

fn bind<'a>(from: &Path, to: &'a Path) -> Bind<'a> {
    std::fs::create_dir_all(to).unwrap();
    run("mount", ["--rbind".as_ref(), from.as_os_str(), to.as_os_str()]);
    Bind(to)
}

#[test]
fn bind_mounts_of_the_same_disk_count_once_and_a_loop_of_them_ends() {
    let _turn = lab::together();
    lab::need_root("a bind mount");
    let disk = Disk::with(Kind::Ext4);
    let common = disk.mount().path().join("demo/common");
    std::fs::create_dir_all(common.join("pods")).unwrap();
    std::fs::write(common.join("pods/image"), vec![7; 8 << 20]).unwrap();
    run("sync", ["-f".as_ref(), common.as_os_str()]);
    let (again, inside) = (common.join("again"), common.join("loop"));
    let _again = bind(&common.join("pods"), &again);
    let _inside = bind(disk.mount().path(), &inside);
    let config = format!("snap: {{root: {}, interval: 500ms}}", disk.mount().path().display());
    let agent = Agent::start(&config);
    let labels = [("snap", "demo"), ("area", "common")];
    let scrape =
        agent.wait_until("the sum", USAGE, 10 * SECOND, |s| s.value(USAGE, &labels).is_some());
    let sum = scrape.value(USAGE, &labels).unwrap();
    let once = f64::from(8 << 20);
    assert!((once..once * 1.2).contains(&sum), "{sum} bytes of {once}");
}
