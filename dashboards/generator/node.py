"""One node: what happened first. Every panel of the upper part has the same time at the same place."""

from parts import (
    AGENT_SILENT, DQLITE_STATE, ETCD_STATE, EXPECTED_NOT_RUNNING, KINE_STATE, STATES, Board, Column, appeared,
    describe, distribution, first_of, lanes, limits, lines, rows_of, steps_of, syncs_p90,
)  # fmt: skip

ABORTED = "jbd2_abort|ext4_remount_ro|xfs_shutdown|btrfs_forced_readonly|zfs_pool_suspended"
# What ControlPlaneDiskSyncFailing counts: the rest says nothing about the disk.
SYNC_FAILED = 'fdatasync_failures_total{errno!~"ENOENT|ENOTDIR|EACCES|EPERM|EOPNOTSUPP"}'
# What the block layer saw, without a line in any log; a filesystem tries what is not supported, and refused discards harm nobody.
REQUEST_FAILED = 'fdatasync_device_errors_total{status!~"again|notsupp", op!="discard"}'
ALIVE = "group by (%n) (@exporter_build_info)"
UNIT = "%n, unit"
NO_VOLUMES = "no volume of a CSI driver is mounted here"
NO_BACKUPS = "no Longhorn with a backup target"
NO_ARGS = "no files of arguments here"
ENDS = limits("ControlPlaneCertificateExpires", "time until the certificate ends")


def some(*codes):
    return {code: STATES[code] for code in codes}


def build():
    b = Board(
        "controlplane-node",
        "Control plane / Node: what happened first",
        "One node or several, and what went wrong first: the topmost lane that changes colour first is the cause.",
        "now-1h",
    )
    b.add(rows_of(
        "Node",
        describe("What the agent found this node to be.",
                 "a version or role that differs from what it should be", alert="ControlPlaneEtcdVersionSkew"),
        [
            Column("Node", label="instance"),
            Column("", "group by (%n, hostname, distribution, version, datastore, role) (@exporter_node_info)"),
            Column("Host name", label="hostname"),
            Column("Distribution", label="distribution"),
            Column("Version", label="version"),
            Column("Datastore", label="datastore"),
            Column("Role", label="role"),
            Column("Up since", "max by (%n) (time() - @exporter_node_boot_timestamp_seconds)", unit="s", decimals=0),
            Column("Agent since", "max by (%n) (time() - @@process_start_time_seconds and on (%n) @exporter_build_info)",
                   unit="s", decimals=0),
            Column("Members reachable", "max by (%n) (@etcd_voters_reachable or @dqlite_voters_reachable)"),
            Column("Members listed", "max by (%n) (@etcd_voters_listed or @dqlite_voters_listed)"),
        ],
        size=(24, 7), none="no agent is scraped"))  # fmt: skip

    b.add(first(), units(), peers())
    b.add(
        distribution(
            "Syncs of the datastore's disk, by duration",
            describe(
                "How many syncs took how long, all chosen nodes together: a test write like etcd's, flushed to the disk. "
                "A sync that hangs appears when it ends; until then it is in the panel below.",
                "cells above 100 ms, or a band that climbs",
                limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")),
            "sum by (le) (increase(@fdatasync_duration_seconds_bucket[%w]))", "s",
            size=(24, 8), none="sync probe off",
        ),
        lines(
            "Longest sync, and the one under way",
            describe(
                "The longest sync of the last 60 s, and the age of the sync that has not ended. An age that climbs in a "
                "straight line is a disk that does not answer.",
                "", limits("ControlPlaneDiskSyncStuck", "sync in flight")),
            [("max by (%n, device) (max_over_time(@fdatasync_max_seconds[%w]))", "{{instance}} {{device}} longest"),
             ("max by (%n, device) (max_over_time(@fdatasync_inflight_seconds[%w]))", "{{instance}} {{device}} under way"),
             ("max by (%n, process) (max_over_time(@fdatasync_datastore_inflight_seconds[%w]))",
              "{{instance}} {{process}} under way")],
            "s", size=(24, 8), none="sync probe off", floor=0, wide=True,
            thresholds=steps_of(limits("ControlPlaneDiskSyncStuck", "sync in flight")),
        ),
        lines(
            "Kernel I/O errors, by device",
            describe(
                "Requests that the kernel's block layer failed. It logs at most 10 in 5 seconds, so a flood is larger "
                "than it looks; where the agent may watch the block layer itself, each is counted. A device that holds the datastore takes etcd with it.",
                "any at all", limits("ControlPlaneKernelIOErrors", "time since the datastore device's last error")),
            [(f"{appeared('kernel_io_errors_total', '%n, device, kind, operation')} > 0",
              "{{instance}} {{device}} {{kind}} {{operation}}"),
             (f"{appeared(REQUEST_FAILED, '%n, device, status, op')} > 0",
              "{{instance}} {{device}} {{status}} {{op}}, seen by the block layer")],
            "short", size=(24, 6), none="no I/O error in this time", bars=True, floor=0, decimals=0, wide=True,
        ),
    )  # fmt: skip

    b.row("Disk and kernel")
    b.add(
        lines(
            "Syncs, median and p90 of 15 minutes",
            describe("The figures that the alert looks at. etcd wants syncs below 10 ms. Where a process is named, these are "
                     "its own syncs, seen in the kernel, and the alert goes by them.",
                     rows=limits("ControlPlaneDiskSyncSlow", "syncs, median of 15 minutes")
                     + limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")),
            [(f"histogram_quantile({quantile}, sum by (%n, device, le) (rate(@fdatasync_duration_seconds_bucket[15m])))",
              "{{instance}} {{device}} " + name) for quantile, name in ((0.5, "median"), (0.9, "p90"))]
            + [(f"histogram_quantile({quantile}, sum by (%n, process, le) "
                f"(rate(@fdatasync_datastore_duration_seconds_bucket{{file=~\"wal|unknown\"}}[15m])))",
                "{{instance}} {{process}} " + name) for quantile, name in ((0.5, "median"), (0.9, "p90"))],
            "s", none="sync probe off", log=True,
            thresholds=steps_of(limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")),
        ),
        lines(
            "Syncs longer than a second, in 10 minutes",
            describe("Each of them can cost the leader its lease.",
                     rows=limits("ControlPlaneDiskSyncStalls", "syncs above 1 s in 10 minutes")),
            [('sum by (%n, device) (increase(@fdatasync_stalls_total{threshold="1"}[10m]))', "{{instance}} {{device}}"),
             ('sum by (%n, process) (increase(@fdatasync_datastore_stalls_total{threshold="1"}[10m]))',
              "{{instance}} {{process}}")],
            "short", none="sync probe off", floor=0, decimals=0,
            thresholds=steps_of(limits("ControlPlaneDiskSyncStalls", "syncs above 1 s in 10 minutes")),
        ),
        lines(
            "Syncs that failed",
            describe("Rounds of the sync probe that ended in an error, by step and errno (EIO: the disk fails. ENOSPC: "
                     "it is full. EROFS: it is read-only), and the datastore's own syncs that did, seen in the kernel.",
                     "any at all", limits("ControlPlaneDiskSyncFailing", "time since the last failed sync")),
            [(f"{appeared(SYNC_FAILED, '%n, device, step, errno')} > 0",
              "{{instance}} {{device}} {{step}} {{errno}}"),
             (f"{appeared('fdatasync_datastore_failures_total', '%n, process, file, op')} > 0",
              "{{instance}} {{process}} {{file}} {{op}}")],
            "short", none="no sync failed in this time", bars=True, floor=0, decimals=0,
        ),
        lines(
            "Datastore threads blocked in the kernel",
            describe("How long a thread of the datastore has not moved in the kernel, as it does when its disk hangs.",
                     rows=limits("ControlPlaneDatastoreThreadBlocked", "thread blocked in the kernel")),
            [("max by (%n, process) (max_over_time(@fdatasync_thread_blocked_seconds[%w]))",
              "{{instance}} {{process}}")],
            "s", none="no process of a datastore found", floor=0,
            thresholds=steps_of(limits("ControlPlaneDatastoreThreadBlocked", "thread blocked in the kernel")),
        ),
        lines(
            "What the kernel logged, by meaning",
            describe("Lines of the kernel's log. One fault makes several lines, so do not add them up.",
                     "jbd2_abort, ext4_remount_ro, xfs_shutdown, hung_task, oom_kill; any block error",
                     limits("ControlPlaneFilesystemAborted", "time since the kernel's last such line")),
            [(f"{appeared('kernel_events_total', '%n, event')} > 0", "{{instance}} {{event}}")],
            "short", none="nothing logged in this time", bars=True, floor=0, decimals=0,
        ),
        lines(
            "Flushes of the disk, average time",
            describe("The disk's own account of all flushes, everybody's and not only the probe's.",
                     "above what the probe measures while the machine is calm",
                     limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")),
            [("sum by (%n, device) (rate(@fdatasync_device_flush_seconds_total[%w]))"
              " / (sum by (%n, device) (rate(@fdatasync_device_flushes_total[%w])) > 0)", "{{instance}} {{device}}")],
            "s", none="this disk counts no flushes", floor=0,
        ),
    )  # fmt: skip

    b.row("etcd, as this node sees it")
    b.add(
        lines(
            "Reads through the local member, p90",
            describe("Time of the agent's linearizable reads, which need the leader and a majority.",
                     rows=limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 10 minutes")
                     + limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 5 minutes")),
            [('histogram_quantile(0.9, sum by (%n, le)'
              ' (rate(@etcd_request_duration_seconds_bucket{request="linearizable_read"}[5m])))', "{{instance}}")],
            "s", none="no etcd member on this node", floor=0,
            thresholds=steps_of(limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 10 minutes")
                                + limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 5 minutes")),
        ),
        lines(
            "Calls to etcd that failed, by reason",
            describe("The agent's own calls to the local member. refused: nobody listens. timeout: it hangs. tls_…: "
                     "certificates.",
                     "any at all, except while etcd is restarted on purpose", alert="ControlPlaneEtcdMemberDown"),
            [(f"{appeared('etcd_request_failures_total', '%n, request, reason')} > 0",
              "{{instance}} {{request}} {{reason}}")],
            "short", none="no call failed in this time", bars=True, floor=0, decimals=0,
        ),
    )  # fmt: skip

    b.row("The API server, and the ways to it", api())
    b.row("Log")
    b.add(*logs())
    b.row("Units and space")
    b.add(
        lines(
            "Restarts in 24 hours, by unit",
            describe("Automatic restarts by systemd. A slow crash loop shows here and nowhere else.",
                     rows=limits("ControlPlaneUnitRestarting", "restarts in 24 hours")),
            [("sum by (%n, unit) (increase(@systemd_unit_restarts_total[24h]))", "{{instance}} {{unit}}")],
            "none", none="systemd is not read here", floor=0, decimals=0,
            thresholds=steps_of(limits("ControlPlaneUnitRestarting", "restarts in 24 hours")),
        ),
        rows_of(
            "How units last ended",
            describe("How each service's main process last ended, and how long ago.",
                     "dumped, or killed by BUS, SEGV, ABRT or KILL", alert="ControlPlaneUnitDied"),
            [
                Column("Node", label="instance"),
                Column("Unit", label="unit"),
                Column("", "group by (%n, unit, code, status) (@systemd_unit_last_exit_info)"),
                Column("Ended by", label="code"),
                Column("Status", label="status"),
                Column("Ago", "min by (%n, unit) (time() - @systemd_unit_last_exit_timestamp_seconds)", unit="s",
                       decimals=0, rows=limits("ControlPlaneUnitDied", "time since the process died")),
            ],
            size=(12, 8), none="no service has ended since it was loaded",
        ),
        lines(
            "Space left",
            describe("Share of each filesystem that processes other than root's may still fill.",
                     rows=limits("ControlPlaneDatastoreSpaceLow", "space left")),
            [("min by (%n, path, role) (@filesystem_avail_bytes / @filesystem_size_bytes)",
              "{{instance}} {{path}} ({{role}})")],
            "percentunit", none="no filesystem is watched", floor=0, top=1,
            thresholds=steps_of(limits("ControlPlaneDatastoreSpaceLow", "space left")),
        ),
        lines(
            "Inodes left",
            describe("Share of each filesystem's inodes that is free. None left looks like a full disk.",
                     rows=limits("ControlPlaneInodesLow", "inodes left")),
            [("min by (%n, path, role) (@filesystem_files_free / @filesystem_files)",
              "{{instance}} {{path}} ({{role}})")],
            "percentunit", none="these filesystems do not count inodes", floor=0, top=1,
            thresholds=steps_of(limits("ControlPlaneInodesLow", "inodes left")),
        ),
        lines(
            "Snaps on the disk",
            describe("What each snap takes: packages, the data of its revisions, common data.",
                     "growth while the space left shrinks", alert="ControlPlaneDatastoreSpaceLow"),
            [("sum by (%n, snap, area) (@snap_disk_usage_bytes)", "{{instance}} {{snap}} {{area}}")],
            "bytes", none="no control plane from a snap here", floor=0,
        ),
        lanes(
            "Read-only filesystems",
            describe("A filesystem turns read-only by order, or because the kernel found it damaged.",
                     "red", alert="ControlPlaneFilesystemReadOnly"),
            [("max by (%n, path) (max_over_time(@filesystem_readonly[%w])) * 32", "{{instance}} {{path}}")],
            some(0, 32), size=(12, 8), none="no filesystem is watched",
        ),
    )  # fmt: skip
    b.row("Volumes", volumes())
    b.row("Arguments of the control plane")
    b.add(*arguments())
    b.row("Static pods, and the processes of k0s", components())
    b.row("Certificates", certificates())
    b.row("Settings and versions", settings())
    b.row("The agent itself", agent())
    return b.build()


def first():
    """One lane for each signal, in the order in which a fault travels: disk, filesystem, datastore, units."""
    space = limits("ControlPlaneDatastoreSpaceLow", "space left")[-1]
    stuck = limits("ControlPlaneDiskSyncStuck", "sync in flight")[0]
    slow = limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")[0]
    kernel = first_of(
        (f'sum by (%n) ({appeared("kernel_events_total{event=~" + chr(34) + ABORTED + chr(34) + "}", "%n, event")})', 12),
        (f"sum by (%n) ({appeared('kernel_io_errors_total', '%n, device')} or {appeared(REQUEST_FAILED, '%n, device, op')})", 11),
    )
    syncs = first_of(
        (f"sum by (%n) ({appeared(SYNC_FAILED, '%n, path')}"
         f" or {appeared('fdatasync_datastore_failures_total', '%n, process')})", 23),
        (f"max by (%n) (max_over_time(@fdatasync_inflight_seconds[%w])"
         f" or max_over_time(@fdatasync_datastore_inflight_seconds[%w])) > {stuck.value:g}", 22),
        ('sum by (%n) (increase(@fdatasync_stalls_total{threshold="1"}[%w])'
         ' or increase(@fdatasync_datastore_stalls_total{threshold="1"}[%w]))', 21),
        (f"{syncs_p90('%w')} > {slow.value:g}", 20),
    )  # fmt: skip
    disk = first_of(
        ("max by (%n) (max_over_time(@filesystem_readonly[%w]))", 32),
        (f'max by (%n) ((@filesystem_avail_bytes{{role="datastore"}} / @filesystem_size_bytes{{role="datastore"}})'
         f" < bool {space.value:g})", 31),
    )  # fmt: skip
    peers_ = first_of(("max by (%n) (1 - min_over_time(@etcd_peer_up[%w]))", 51))
    # The local member is among its members.
    others = first_of((
        "sum by (%n) (1 - min_over_time(@dqlite_member_up[%w])) - max by (%n) (1 - min_over_time(@dqlite_up[%w]))", 51))
    units_ = first_of(
        ('max by (%n) (max_over_time(@systemd_unit_state{state="failed"}[%w]))', 65),
        ("sum by (%n) (increase(@systemd_unit_restarts_total[%w]))", 63),
        (f"count by (%n) ({EXPECTED_NOT_RUNNING})", 64),
    )
    # Shorter than a step, so that it is back when the step is drawn.
    missed = (
        "group by (%n) (min_over_time(@@up[%w]) == 0) and on (%n) last_over_time(@exporter_build_info[1d])"
    )
    ok = lambda metric: f" or group by (%n) (@{metric}) * 0"
    return lanes(
        "What happened first",
        describe(
            "A lane for each signal and node, in the order in which a fault travels: the kernel, the disk, the "
            "filesystem, the datastore, its peers, the arguments, the units, the agent. Look for the leftmost colour. A "
            "state shorter than a step is drawn a whole step wide, never left out. A lane that is not there is a sampler "
            "that does not run here; a gap is a time without figures.",
            "anything but green and blue", alert="README"),
        [
            (kernel + ok("kernel_records_lost_total"), "{{instance}} · kernel"),
            (syncs + ok("fdatasync_inflight_seconds"), "{{instance}} · syncs"),
            (disk + ok("filesystem_readonly"), "{{instance}} · filesystems"),
            (ETCD_STATE, "{{instance}} · etcd"),
            (peers_ + ok("etcd_peer_up"), "{{instance}} · etcd's peers"),
            (DQLITE_STATE, "{{instance}} · dqlite"),
            (others + ok("dqlite_member_up"), "{{instance}} · dqlite's peers"),
            (KINE_STATE, "{{instance}} · kine"),
            (argument_state("%n") + ok("args_file_timestamp_seconds"), "{{instance}} · arguments"),
            (units_ + ok("systemd_unit_loaded"), "{{instance}} · units"),
            (f"({AGENT_SILENT}) * 0 + 71 or ({missed}) * 0 + 71 or {ALIVE} * 0", "{{instance}} · agent"),
        ],
        some(0, 11, 12, 20, 21, 22, 23, 31, 32, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 55, 56, 57, 63, 64, 65, 71),
        size=(24, 14), none="no agent is scraped",
    )  # fmt: skip


def argument_state(by):
    """A file that bash cannot split is not judged."""
    return first_of(
        (f"max by ({by}) (max_over_time(@args_unknown_flags[%w]))", 56),
        (f"group by ({by}) (@args_file_timestamp_seconds unless @args_checked)", 57),
        (f"max by ({by}) (max_over_time(@args_changed_since_start[%w]))", 55),
    )


def units():
    state = lambda states: f'max by ({UNIT}) (max_over_time(@systemd_unit_state{{state=~"{states}"}}[%w]))'
    return lanes(
        "Units",
        describe(
            "The state of each systemd unit of the control plane. `restarted` also marks a restart that was over before "
            "anybody looked.",
            "red; orange again and again; yellow for minutes", alert="ControlPlaneUnitDown"),
        [(first_of(
            (state("failed"), 65),
            (f"sum by ({UNIT}) (increase(@systemd_unit_restarts_total[%w]))", 63),
            (f"group by ({UNIT}) ({EXPECTED_NOT_RUNNING} unless on ({UNIT})"
             ' (@systemd_unit_state{state=~"activating|deactivating"} == 1))', 64),
            (state("activating|deactivating|reloading"), 62),
            (f'max by ({UNIT}) (@systemd_unit_state{{state="active"}})', 60),
        ) + f" or group by ({UNIT}) (@systemd_unit_state) * 0 + 61", "{{instance}} {{unit}}")],
        some(60, 61, 62, 63, 64, 65), size=(24, 6), none="systemd is not read here",
    )  # fmt: skip


def logs():
    formatted = limits("ControlPlaneVolumeFormatted", "time since the last such line")
    return [
        lines(
            "What the logs said, by meaning",
            describe(
                "Lines of the control plane's units and of etcd's static pod, by what they mean. One fault makes several "
                "lines, so do not add them up. Healthy nodes have a few etcd_slow_apply and unit_started.",
                "volume_formatting, *_corrupt, go_sigbus, etcd_wal_write_failed at all; anything again and again",
                formatted),
            [(f"{appeared('journal_events_total', '%n, signature')} > 0", "{{instance}} {{signature}}")],
            "short", size=(24, 8), none="no such line in this time, or no log is read here", bars=True, floor=0,
            decimals=0, wide=True,
        ),
        rows_of(
            "When the logs last said it",
            describe("When each line was last logged, the newest first. What was logged before the agent's start is here too.",
                     "a volume that was formatted within the hour and is not new", formatted),
            [
                Column("Node", label="instance"),
                Column("Unit", label="unit"),
                Column("Meaning", label="signature"),
                Column("Ago", "min by (%n, unit, signature) (time() - @journal_event_last_timestamp_seconds)", unit="s",
                       decimals=0),
            ],
            size=(12, 8), none="no such line, or no log is read here", sort=("Ago", False),
        ),
        lines(
            "What such lines report, p90 and longest",
            describe("How long took what the lines tell of, as they say themselves: only what was slow enough to be logged.",
                     "etcd_slow_fdatasync at all: a sync above a second",
                     limits("ControlPlaneEtcdHeartbeatLate", "late heartbeats logged in 15 minutes")),
            [(f"histogram_quantile({quantile}, sum by (%n, signature, le) (rate(@journal_reported_seconds_bucket[%w])))",
              "{{instance}} {{signature}} " + name) for quantile, name in ((0.9, "p90"), (1, "longest, at most"))],
            "s", none="no line with a duration in this time", log=True,
        ),
        lanes(
            "Readers of the logs",
            describe("Whether the journal, and the log files of static pods, are being read. Without them nothing of this "
                     "row is known.",
                     "red", alert="ControlPlaneSamplerFailing"),
            [("46 * (1 - min by (%n, source) (min_over_time(@journal_reader_up[%w])))", "{{instance}} {{source}}")],
            {0: ("reads", "green"), 46: ("does not read", "red")}, size=(8, 7), none="no log is read here",
        ),
        lines(
            "How far the readers are behind",
            describe("How old the newest line was when it was read; 0 while nothing is written.",
                     "minutes: what the logs say comes too late", alert="ControlPlaneSamplerFailing"),
            [("max by (%n, source) (max_over_time(@journal_lag_seconds[%w]))", "{{instance}} {{source}}")],
            "s", size=(8, 7), none="no log is read here", floor=0,
        ),
        lines(
            "Left out of the logs",
            describe("Entries that were passed over because more was written than could be read, and lines that begin "
                     "like JSON and are none.",
                     "any: lines are missing from the figures", alert="ControlPlaneSamplerFailing"),
            [("sum by (%n) (increase(@journal_entries_skipped_total[%w]))", "{{instance}} passed over"),
             ("sum by (%n) (increase(@journal_lines_unparsed_total[%w]))", "{{instance}} not understood")],
            "short", size=(8, 7), none="no log is read here", floor=0, decimals=0,
        ),
    ]  # fmt: skip


def arguments():
    return [
        lanes(
            "Files of arguments",
            describe(
                "Each file with the flags of a program. `changed since its start`: the program runs with what the file "
                "said before, and meets the change at its next restart. `unknown flag`: it ends at once when it is "
                "started with it. Which flags it knows is known for some programs only.",
                "red; yellow that nobody expects", alert="ControlPlaneArgsChanged"),
            [(argument_state("%n, file") + " or max by (%n, file) (1 - @args_checked) * 58", "{{instance}} {{file}}")],
            some(0, 55, 56, 57, 58), size=(24, 6), none=NO_ARGS,
        ),
        rows_of(
            "Unknown flags",
            describe("Flags that the program of this version does not know: it ends at once when it is started with them.",
                     "any", alert="ControlPlaneArgsUnknownFlags"),
            [
                Column("Node", label="instance"),
                Column("File", label="file"),
                Column("Flag", label="flag"),
                Column("", "group by (%n, file, flag) (@args_unknown_flag_info)"),
            ],
            size=(12, 9), none="no unknown flag, or no file of arguments is checked here",
        ),
        rows_of(
            "What is known of each file",
            describe("When the file was last written, the blocks that a tool manages in it, and what is wrong with it.",
                     "any coloured cell", alert="ControlPlaneArgsUnknownFlags"),
            [
                Column("Node", label="instance"),
                Column("File", label="file"),
                Column("Flags checked", "max by (%n, file) (@args_checked)",
                       states={0: ("no", "transparent"), 1: ("yes", "transparent")}),
                Column("Unknown", "max by (%n, file) (@args_unknown_flags)",
                       states={0: ("0", "transparent"), **{n: (str(n), "red") for n in range(1, 6)}}),
                Column("Managed blocks", "max by (%n, file) (@args_managed_blocks)"),
                Column("Since the start", "max by (%n, file) (@args_changed_since_start)",
                       states={0: ("as it was", "transparent"), 1: ("changed", "yellow")}),
                Column("Written ago", "min by (%n, file) (time() - @args_file_timestamp_seconds)", unit="s", decimals=0),
            ],
            size=(12, 9), none=NO_ARGS,
        ),
    ]  # fmt: skip


def volumes():
    wiped = limits("ControlPlaneVolumeReformatted", "time since the filesystem was made")
    few = limits("ControlPlaneVolumeBackupsFew", "backups")
    return [
        rows_of(
            "Volumes that are mounted here",
            describe("The volumes of Longhorn and other CSI drivers on this node. Formatted anew: another filesystem was on it "
                     "before.", "a volume that was formatted anew and nobody did it", wiped),
            [
                Column("Node", label="instance"),
                Column("Volume", label="volume"),
                Column("", "group by (%n, volume, device, fstype) (@volume_info)"),
                Column("Device", label="device"),
                Column("Filesystem", label="fstype"),
                Column("Formatted anew", "min by (%n, volume) (time() - @volume_reformatted_timestamp_seconds)", unit="s",
                       decimals=0, rows=wiped),
                Column("Made", "min by (%n, volume) (time() - @volume_formatted_timestamp_seconds)", unit="s", decimals=0),
                Column("First seen", "min by (%n, volume) (time() - @volume_first_seen_timestamp_seconds)", unit="s",
                       decimals=0),
                Column("Mounted", "min by (%n, volume) (time() - @volume_last_mount_timestamp_seconds)", unit="s", decimals=0),
                Column("Used", "max by (%n, volume) (@volume_used_bytes)", unit="bytes"),
                Column("Size", "max by (%n, volume) (@volume_size_bytes)", unit="bytes"),
            ],
            size=(24, 8), none=NO_VOLUMES, sort=("Made", False),
        ),
        lines(
            "Used bytes of the volumes",
            describe("What is used of each volume. A line that falls to nothing is a volume that was emptied, or wiped.",
                     "a fall to less than a tenth within an hour",
                     limits("ControlPlaneVolumeUsageCollapsed", "used bytes against the most within an hour")),
            [("max by (%n, volume) (@volume_used_bytes)", "{{instance}} {{volume}}")],
            "bytes", size=(12, 8), none=NO_VOLUMES, floor=0,
        ),
        rows_of(
            "Backups of Longhorn's volumes",
            describe("Complete backups of every volume of the cluster, by Longhorn's objects in the datastore. Overdue: since "
                     "when the newest one is older than it may be.", "fewer than two", few),
            [
                Column("Volume", label="volume"),
                Column("Backups", "max by (cluster, job, volume) (@volume_backups)", decimals=0, rows=few),
                Column("Newest", "min by (cluster, job, volume) (time() - @volume_backup_last_timestamp_seconds)", unit="s",
                       decimals=0),
                Column("Overdue", "min by (cluster, job, volume) (time() - @volume_backup_due_timestamp_seconds) > 0", unit="s",
                       decimals=0),
                Column("Volume made", "min by (cluster, job, volume) (time() - @volume_provisioned_timestamp_seconds)", unit="s",
                       decimals=0),
            ],
            size=(12, 8), none=NO_BACKUPS, sort=("Backups", False),
        ),
    ]  # fmt: skip


def components():
    none = "no static pods here, and no k0s"
    return [
        lines(
            "Restarts of components",
            describe("How often kubelet has restarted each container of a static pod.", "steps up that nobody made",
                     alert="ControlPlaneComponentRestarting"),
            [("max by (%n, static_pod, process) (@static_pod_restarts)", "{{instance}} {{process}}")],
            "short", size=(12, 8), none=none, floor=0, decimals=0,
        ),
        lines(
            "Age of processes",
            describe("How long each process of the control plane has run. It falls to zero with each start.",
                     "one that stays near zero", alert="ControlPlaneComponentCrashLooping"),
            [("max by (%n, process) (time() - @static_pod_start_timestamp_seconds)", "{{instance}} {{process}}")],
            "s", size=(12, 8), none=none, floor=0,
        ),
    ]  # fmt: skip


def certificates():
    return [
        rows_of(
            "Certificates",
            describe(
                "When each certificate and kubeconfig ends; of a chain, the first that does. A restart is due where k3s, "
                "RKE2 or k0s would renew it at their start, or where kubeadm has renewed it and its user has not been "
                "started since.",
                rows=ENDS),
            [
                Column("Node", label="instance"),
                Column("File", label="path"),
                Column("Role", label="role"),
                Column("Ends in", "min by (%n, path, role) (@certificate_not_after_timestamp_seconds - time())", unit="s",
                       decimals=0, rows=ENDS),
                Column("Restart", "max by (%n, path) (@certificate_restart_due)",
                       states={0: ("not due", "transparent"), 1: ("due", "yellow")}),
            ],
            size=(24, 9), none="no certificates are read here", sort=("Ends in", False),
        ),
        lines(
            "Time until the first certificate ends",
            describe("The certificate of each role that ends first. A step up is a renewal.", rows=ENDS),
            [("min by (%n, role) (@certificate_not_after_timestamp_seconds - time())", "{{instance}} {{role}}")],
            "s", size=(24, 7), none="no certificates are read here", floor=0, thresholds=steps_of(ENDS),
        ),
    ]  # fmt: skip


API_SLOW = limits("ControlPlaneApiserverSlow", "answers of the API server, p90 of 10 minutes")


def api():
    none = "no API server is watched here"
    return [
        rows_of(
            "What the API server says",
            describe(
                "The API server of each node by its own health checks (`local`), and each URL of the configuration. "
                "`unauthorised` is an answer too: it says nothing of the datastore.",
                "failing, unreachable", alert="ControlPlaneApiserverDown"),
            [
                Column("Node", label="instance"),
                Column("Target", label="target"),
                Column("Page", label="type"),
                Column("State", label="state"),
                Column("", "group by (%n, target, type, state) (@apiserver_state == 1)"),
            ],
            size=(8, 12), none=none,
        ),
        rows_of(
            "Checks that fail",
            describe("The API server's own checks by name.", "any", alert="ControlPlaneApiserverNotReady"),
            [
                Column("Node", label="instance"),
                Column("Page", label="type"),
                Column("Check", label="check"),
                Column("", "group by (%n, type, check) (@apiserver_failing_check_info)"),
            ],
            size=(8, 12), none="no check fails, or no API server is watched here",
        ),
        lines(
            "Time of answers, p90",
            describe("From dialling to the end of the answer, on the node itself or to the URL.", rows=API_SLOW),
            [("histogram_quantile(0.9, sum by (%n, target, type, le) "
              "(rate(@apiserver_request_duration_seconds_bucket[%w])))", "{{instance}} {{target}} {{type}}")],
            "s", size=(8, 12), none=none, floor=0, thresholds=steps_of(API_SLOW),
        ),
    ]  # fmt: skip


def settings():
    none = "no settings are read here"
    return [
        rows_of(
            "Settings that are not the same on all of these nodes",
            describe(
                "Flags and settings with a value that only some of the chosen nodes have: choose all servers of a control "
                "plane. A list is compared item by item.", "any of k3s, RKE2 or k0s",
                alert="ControlPlaneSettingsDiffer"),
            [
                Column("Node", label="instance"),
                Column("Program", label="component"),
                Column("Flag", label="flag"),
                Column("Value", label="value"),
                Column("",
                       "group by (%n, component, flag, value) (@settings_flag_info) unless on (cluster, job, component, flag, value) "
                       "(count by (cluster, job, component, flag, value) (group by (%n, component, flag, value) (@settings_flag_info)) "
                       "== on (cluster, job, component) group_left () "
                       "count by (cluster, job, component) (group by (%n, component) (@settings_component_info)))"),
            ],
            size=(12, 9), none="they are the same, or none are read here",
        ),
        rows_of(
            "Versions",
            describe("What is installed, by its files, and on how many of these nodes.", "more than one line for a part",
                     alert="ControlPlaneVersionSkew"),
            [
                Column("Part", label="component"),
                Column("Version", label="version"),
                Column("Nodes", "count by (component, version) (group by (%n, component, version) (@settings_version_info))"),
            ],
            size=(12, 9), none=none, sort=("Part", False),
        ),
        rows_of(
            "Files of the settings",
            describe("When each file was last written, and whether its program has been started since.", "changed",
                     alert="ControlPlaneSettingsChanged"),
            [
                Column("Node", label="instance"),
                Column("File", label="path"),
                Column("Since the start", "max by (%n, path) (@settings_changed_since_start)",
                       states={0: ("as it was", "transparent"), 1: ("changed", "yellow")}),
                Column("Written ago", "min by (%n, path) (time() - @settings_file_timestamp_seconds)", unit="s", decimals=0),
            ],
            size=(12, 8), none="no such files here",
        ),
        rows_of(
            "Kernel",
            describe("Settings of the kernel that decide how writes to disk are held back. They should be the same on all nodes.",
                     "dirty 20 % and swappiness 60 under a datastore", alert="ControlPlaneHostSettingsDiffer"),
            [
                Column("Node", label="instance"),
                *(Column(title, f'max by (%n) (@settings_sysctl{{name="vm.{name}"}})') for title, name in (
                    ("Dirty %", "dirty_ratio"), ("In background %", "dirty_background_ratio"),
                    ("Swappiness", "swappiness"), ("Overcommit", "overcommit_memory"))),
            ],
            size=(12, 8), none=none,
        ),
        rows_of(
            "Disks of the datastore",
            describe("Scheduler, whether the kernel takes the cache for volatile, rotation.",
                     "`write through` on a disk without a protected cache", alert="ControlPlaneHostSettingsDiffer"),
            [
                Column("Node", label="instance"),
                Column("Disk", label="device"),
                Column("Scheduler", label="scheduler"),
                Column("Write cache", label="write_cache"),
                Column("Rotational", label="rotational"),
                Column("", "group by (%n, device, scheduler, write_cache, rotational) (@settings_disk_info)"),
            ],
            size=(12, 7), none="the datastore's disks are not known",
        ),
        rows_of(
            "ZFS",
            describe("Pools and their states.", "anything but ONLINE", alert="ControlPlaneZfsPoolUnhealthy"),
            [
                Column("Node", label="instance"),
                Column("Pool", label="pool"),
                Column("State", label="state"),
                Column("", "group by (%n, pool, state) (@settings_zfs_pool_info)"),
                Column("Writes gathered", "max by (%n) (@settings_zfs_txg_timeout_seconds)", unit="s"),
            ],
            size=(12, 7), none="no ZFS here",
        ),
        lines(
            "Time lost waiting for disk and memory",
            describe("The share of the last five minutes in which all processes that had work to do waited (full).",
                     "disk above a few percent while syncs are slow", alert="ControlPlaneDiskSyncSlow"),
            [('max by (%n, resource) (rate(@settings_pressure_seconds_total{share="full"}[5m]))', "{{instance}} {{resource}}")],
            "percentunit", size=(12, 8), none="the kernel does not count it", floor=0,
        ),
        lines(
            "How far the clock may be off",
            describe("By the kernel's own account; it grows by half a millisecond a second while nobody corrects the clock.",
                     "16 s, from which on it counts as lost", alert="ControlPlaneClockUnsynchronised"),
            [("max by (%n) (@settings_clock_max_error_seconds)", "{{instance}}")],
            "s", size=(12, 8), none="the kernel may not be asked, or is not", floor=0,
        ),
    ]  # fmt: skip


def peers():
    return lanes(
        "Members, as the others see them",
        describe(
            "Whether the other members answer this node's agent: those of etcd under their own id, those of dqlite at "
            "their address. One member that is silent for all is down; one that is silent for one node is cut off from it.",
            "red", alert="ControlPlaneEtcdQuorumAtRisk"),
        [("max by (%n, member_id) (46 * (1 - min_over_time(@etcd_peer_up[%w])))"
          " * on (%n, member_id) group_left (member) group by (%n, member_id, member) (@etcd_peer_info)",
          "{{instance}} → {{member}}"),
         ("46 * (1 - min by (%n, member) (min_over_time(@dqlite_member_up[%w])))", "{{instance}} → {{member}}")],
        {0: ("answers", "green"), 46: STATES[46]}, size=(24, 5), none="no other member, or none can be asked from here",
    )  # fmt: skip


def agent():
    stale = describe(
        "Whether each sampler's last run ended well. A sampler that does not run here has no lane.",
        "red for minutes", alert="ControlPlaneSamplerFailing")  # fmt: skip
    return [
        lanes("Samplers", stale,
              [("46 * (1 - min by (%n, sampler) (min_over_time(@sampler_up[%w])))", "{{instance}} {{sampler}}")],
              {0: ("works", "green"), 46: ("fails", "red")}, size=(24, 9), none="no agent is scraped"),
        lines("Age of the last good run",
              describe("How long ago each sampler last brought something.",
                       "more than three of its intervals and a minute", alert="ControlPlaneSamplerStale"),
              [("max by (%n, sampler) (time() - @sampler_last_success_timestamp_seconds)", "{{instance}} {{sampler}}")],
              "s", none="no agent is scraped", floor=0),
        lines("Runs under way",
              describe("How long the run that has not ended has taken so far: what it reads does not answer.",
                       "more than three of its intervals and a minute", alert="ControlPlaneSamplerStale"),
              [("max by (%n, sampler) (max_over_time(@sampler_inflight_seconds[%w]))", "{{instance}} {{sampler}}")],
              "s", none="no agent is scraped", floor=0),
        lines("Duration of runs",
              describe("How long each sampler's last run took.", "near its interval",
                       alert="ControlPlaneSamplerStale"),
              [("max by (%n, sampler) (max_over_time(@sampler_run_duration_seconds[%w]))", "{{instance}} {{sampler}}")],
              "s", none="no agent is scraped", log=True),
        lines("Failed runs, by reason",
              describe("Runs, and parts of runs, that failed.", "any that go on",
                       alert="ControlPlaneSamplerFailing"),
              [(f"{appeared('sampler_failures_total', '%n, sampler, reason')} > 0",
                "{{instance}} {{sampler}} {{reason}}")],
              "short", none="no run failed in this time", bars=True, floor=0, decimals=0),
        lines("Left out by a cap",
              describe("Series and events that a cap kept out of a batch.", "any: the picture is not complete",
                       alert="ControlPlaneSamplerFailing"),
              [("sum by (%n, sampler) (increase(@sampler_dropped_total[%w]))", "{{instance}} {{sampler}}")],
              "short", none="no agent is scraped", floor=0, decimals=0),
        lines("Records lost of the kernel's log",
              describe("Records that the kernel overwrote before they were read, and messages that its rate limit "
                       "swallowed.",
                       "any: errors are missing from the figures", alert="ControlPlaneKernelIOErrors"),
              [("sum by (%n) (increase(@kernel_records_lost_total[%w]))", "{{instance}} lost"),
               ("sum by (%n) (increase(@kernel_messages_suppressed_total[%w]))", "{{instance}} suppressed")],
              "short", none="the kernel's log is not read here", floor=0, decimals=0),
        lines("Memory of the agent",
              describe("Resident memory.", "steady growth, or more than 64 MiB, at which the unit is ended",
                       alert="ControlPlaneExporterDown"),
              [("max by (%n) (@@process_resident_memory_bytes and on (%n) @exporter_build_info)", "{{instance}}")],
              "bytes", none="no agent is scraped", floor=0),
        lines("CPU of the agent",
              describe("Share of one core.", "above 5 % for long", alert="ControlPlaneExporterDown"),
              [("sum by (%n) (rate(@@process_cpu_seconds_total[%w]) and on (%n) @exporter_build_info)", "{{instance}}")],
              "percentunit", none="no agent is scraped", floor=0),
        rows_of("Samplers that do not run",
                describe("What is not watched here, and why. `controlplane-exporter inspect` says what would change it.",
                         "no_permission", alert="ControlPlaneSamplerNoPermission"),
                [Column("Node", label="instance"),
                 Column("Sampler", label="sampler"),
                 Column("State", label="state"),
                 Column("", 'group by (%n, sampler, state) (@sampler_state_info{state!="running"})')],
                size=(12, 8), none="every sampler runs here"),
        rows_of("Version and configuration",
                describe("Version of the agent, and whether it could read its configuration.",
                         "not valid", alert="ControlPlaneExporterConfigInvalid"),
                [Column("Node", label="instance"),
                 Column("", "group by (%n, version, revision) (@exporter_build_info)"),
                 Column("Version", label="version"),
                 Column("Revision", label="revision"),
                 Column("Configuration", "min by (%n) (@exporter_config_last_reload_successful)",
                        states={0: ("not valid", "red"), 1: ("valid", "green")})],
                size=(12, 8), none="no agent is scraped"),
    ]  # fmt: skip
