"""What the boards are made of: queries, thresholds, states, panels.

Rules that hold for every board are kept here once, so that a board's file says only what it shows.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import (
    common,
    dashboard as board,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as m
from grafana_foundation_sdk.models import heatmap as h
from grafana_foundation_sdk.models import prometheus as p

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = (
    "https://github.com/controlplane-exporter/controlplane-exporter/blob/main/alerts/runbooks/"
)
DATASOURCE = c.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, BLUE, GREY = "green", "blue", "#8e8e8e"
YELLOW, ORANGE, RED, PURPLE = "yellow", "orange", "red", "purple"
# The width that every full-width panel keeps free on its left, so that the same moment is at the same place.
LEFT = 220


# --- queries ---------------------------------------------------------------------------------------------

# One node. `cluster` is empty where Prometheus attaches no such label, which `.*` matches.
NODE = "cluster, job, instance"
SELECT = 'cluster=~"$cluster", job=~"$job", instance=~"$instance"'
# An alert about a whole cluster has no instance, one about all of Prometheus no job and no cluster either.
SELECT_ALERTS = 'cluster=~"$cluster|", job=~"$job|", instance=~"$instance|"'


def q(text):
    """A query in which `@name` stands for our metric with the board's variables as matchers.

    `@name{more}` adds matchers; `@@name` is a metric that is not ours; `%w` is `$__rate_interval`,
    which holds at least four scrapes, so that nothing between two steps is lost: if the data source knows how often
    the agents are scraped.
    """

    def selector(found):
        foreign, name, more = found.groups()
        matchers = SELECT_ALERTS if name == "ALERTS" else SELECT
        prefix = "" if foreign == "@@" else "controlplane_"
        return f"{prefix}{name}{{{matchers}{', ' + more if more else ''}}}"

    text = re.sub(r"(@@?)([A-Za-z_]+)(?:\{([^}]*)\})?", selector, text)
    return " ".join(text.replace("%w", "$__rate_interval").replace("%n", NODE).split())


def appeared(metric, by):
    """How much a counter grew, when its series may begin with the first thing it counts.

    `increase` does not see that first value. What an agent found when it started is left out: it is older.
    """
    return (
        f"sum by ({by}) ("
        f"(@{metric} unless @{metric} offset %w and on (%n) (@exporter_build_info offset %w))"
        f" or increase(@{metric}[%w]))"
    )


def syncs_p90(window):
    """The slowest p90 of each node by the alert's rule: the probe is left out where the datastore's own syncs are seen."""
    return (
        "max by (%n) ("
        f"histogram_quantile(0.9, sum by (%n, path, device, le) (rate(@fdatasync_duration_seconds_bucket[{window}])))"
        " unless on (%n, device) @fdatasync_datastore_source_info"
        " or histogram_quantile(0.9, sum by (%n, process, le)"
        f' (rate(@fdatasync_datastore_duration_seconds_bucket{{file=~"wal|unknown"}}[{window}]))))'
    )


def first_of(*cases):
    """The code of the first case that holds: pairs of an expression that is above 0 when so, and the code."""
    return " or ".join(f"({expr} > 0) * 0 + {code}" for expr, code in cases)


# --- thresholds ------------------------------------------------------------------------------------------

SCALE = {
    "": 1, "%": 0.01, "×": 1, "ms": 0.001, "s": 1, "min": 60, "h": 3600, "days": 86400,
    "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30,
}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """One row of the table of thresholds."""

    alert: str
    severity: str
    figure: str
    words: str
    hold: str

    @property
    def below(self):
        return self.words.startswith("below ")

    @property
    def value(self):
        number, unit = re.fullmatch(r"(?:above|at least|below|exactly) ([0-9.]+) ?(\S*)", self.words).groups()
        return float(f"{float(number) * SCALE[unit]:.9g}")


def read_limits():
    row = re.compile(r"^\| \[(\w+)\]\(\S+\) \| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$")
    found = map(row.match, (ROOT / "METRICS.md").read_text(encoding="utf-8").splitlines())
    return [Limit(*match.groups()) for match in found if match]


LIMITS = read_limits()


def limits(alert, figure):
    """The rows of one figure of one alert, mildest first. A name that is not in the table is a mistake."""
    rows = [row for row in LIMITS if (row.alert, row.figure) == (alert, figure)]
    if not rows:
        raise SystemExit(f"METRICS.md has no threshold of {alert} for: {figure}")
    return rows


SEVERITY_COLOR = {"info": YELLOW, "warning": ORANGE, "critical": RED}


def steps(*pairs):
    return board.ThresholdsConfig().mode(m.ThresholdsMode.ABSOLUTE).steps(
        [m.Threshold(value=value, color=color) for value, color in pairs]
    )


def steps_of(rows, calm=GREEN):
    """Grafana colours from a value upwards, so the colours of `below` go the other way round."""
    if rows[0].below:
        worst = sorted(rows, key=lambda row: row.value)
        colors = [SEVERITY_COLOR[row.severity] for row in worst] + [calm]
        return steps(*zip([None] + [row.value for row in worst], colors))
    return steps((None, calm), *((row.value, SEVERITY_COLOR[row.severity]) for row in rows))


def runbook(alert):
    text = "All runbooks" if alert == "README" else f"Runbook {alert}"
    return f"[{text}]({RUNBOOKS}{alert}.md)"


def describe(text, bad=None, rows=(), alert=None):
    """What it means, what is bad, where it goes on."""
    if rows:
        alert = rows[0].alert
        for_ = lambda row: "" if row.hold == "at once" else f" for {row.hold}"
        said = ", ".join(f"{row.words}{for_(row)} ({row.severity})" for row in rows)
        bad = f"{bad}; the alert: {said}" if bad else said
    if not (bad and alert):
        raise SystemExit(f"a description without a bad value or a runbook: {text}")
    return f"{text}\n\n**Bad:** {bad}.\n\n{runbook(alert)}"


# --- states ----------------------------------------------------------------------------------------------

# One number for each state on any board, so that a number means the same everywhere.
STATES = {
    0: ("ok", GREEN),
    11: ("I/O errors", RED),
    12: ("filesystem given up", RED),
    20: ("syncs slow", YELLOW),
    21: ("syncs > 1 s", ORANGE),
    22: ("sync stuck", RED),
    23: ("syncs fail", RED),
    31: ("space low", ORANGE),
    32: ("read-only", RED),
    40: ("answers", GREEN),
    41: ("follower", GREEN),
    42: ("leader", BLUE),
    43: ("learner", YELLOW),
    44: ("no leader", RED),
    45: ("blocked", ORANGE),
    46: ("down", RED),
    47: ("leader unknown", ORANGE),
    48: ("stand-by", GREEN),
    49: ("spare", GREY),
    50: ("calls fail", ORANGE),
    51: ("a peer is silent", ORANGE),
    55: ("changed since its start", YELLOW),
    56: ("unknown flag", RED),
    57: ("bash refuses it", RED),
    58: ("as it was, not checked", GREY),
    60: ("running", GREEN),
    61: ("not needed here", GREY),
    62: ("starting or stopping", YELLOW),
    63: ("restarted", ORANGE),
    64: ("not running", RED),
    65: ("failed", RED),
    71: ("agent silent", PURPLE),
    81: ("info", YELLOW),
    82: ("warning", ORANGE),
    83: ("critical", RED),
    91: ("rules not loaded", GREY),
}


def mappings(states):
    """Value mappings from a dictionary of number to (text, colour)."""
    return [
        m.ValueMap(
            options={
                str(value): m.ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(states.items())
            }
        )
    ]


# The state of a node's etcd member.
ETCD_STATE = (
    first_of(
        ("max by (%n) (1 - min_over_time(@etcd_up[%w]))", 46),
        ("max by (%n) (@etcd_up unless @etcd_has_leader)", 45),
        ("max by (%n) (1 - min_over_time(@etcd_has_leader[%w]))", 44),
        ("max by (%n) (@etcd_is_learner)", 43),
        ("max by (%n) (@etcd_is_leader)", 42),
    )
    + " or max by (%n) (@etcd_has_leader) * 0 + 41"
)
# The same of dqlite. Only voters know the leader, so a node that reaches none of them cannot tell.
DQLITE_STATE = (
    first_of(
        ("max by (%n) (1 - min_over_time(@dqlite_up[%w]))", 46),
        ("max by (%n) (@dqlite_up unless @dqlite_has_leader)", 47),
        ("max by (%n) (1 - min_over_time(@dqlite_has_leader[%w]))", 44),
        ('max by (%n) (@dqlite_role{role="spare"})', 49),
        ('max by (%n) (@dqlite_role{role="stand-by"})', 48),
        ("max by (%n) (@dqlite_is_leader)", 42),
    )
    + " or max by (%n) (@dqlite_has_leader) * 0 + 41"
)
# kine has no members: it answers, with an error as well, or not.
KINE_STATE = (
    first_of(
        ("max by (%n) (1 - min_over_time(@kine_up[%w]))", 46),
        ("max by (%n) (@kine_up unless @kine_revision)", 50),
        ("sum by (%n) (increase(@kine_request_failures_total[%w]))", 50),
    )
    + " or max by (%n) (@kine_up) * 0 + 40"
)
# A member says more than the kine in front of it.
KINE_ALONE = f"({KINE_STATE}) unless on (%n) (@etcd_up or @dqlite_up)"
MEMBER_STATES = {code: STATES[code] for code in (40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50)}
AGENT_SILENT = "group by (%n) (last_over_time(@exporter_build_info[1d])) unless on (%n) @exporter_build_info"
EXPECTED_NOT_RUNNING = (
    "(@systemd_unit_expected == 1)"
    ' unless on (%n, unit) (@systemd_unit_state{state=~"active|reloading"} == 1)'
)
FIRING = '@@ALERTS{alertname=~"ControlPlane.+", alertname!="ControlPlaneWatchdog", alertstate="firing"%s}'
WATCHDOG = '@@ALERTS{alertname="ControlPlaneWatchdog"}'


def firing(severity):
    return FIRING % f', severity="{severity}"'


# --- panels ----------------------------------------------------------------------------------------------


def target(expr, legend="", ref="A", instant=False, form=None):
    query = prometheus.Dataquery().datasource(DATASOURCE).expr(q(expr)).ref_id(ref)
    query = query.legend_format(legend or "__auto")
    query = query.instant() if instant else query.range()
    return query.format(form) if form else query


def refs(queries):
    return [(*query, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]) for index, query in enumerate(queries)]


def place(panel, title, description, size, none):
    width, height = size
    return (
        panel.title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .no_value(none)
    )


def number(title, description, expr, unit, size=(4, 4), none="no data", thresholds=None, states=None,
           decimals=None):  # fmt: skip
    """One figure of this moment."""
    panel = place(stat.Panel(), title, description, size, none).unit(unit)
    panel = panel.with_target(target(expr, instant=True))
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(c.BigValueGraphMode.NONE).color_mode(c.BigValueColorMode.VALUE)
    panel = panel.thresholds(thresholds or steps((None, BLUE)))
    if states:
        panel = panel.mappings(states)
    return panel if decimals is None else panel.decimals(decimals)


def lines(title, description, queries, unit, size=(12, 8), none="no data", thresholds=None, log=False,
          floor=None, top=None, bars=False, wide=False, decimals=None):  # fmt: skip
    """Figures over time. `queries` are pairs of an expression and a legend."""
    panel = place(timeseries.Panel(), title, description, size, none).unit(unit)
    for expr, legend, ref in refs(queries):
        panel = panel.with_target(target(expr, legend, ref))
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(c.LegendDisplayMode.LIST)
        .placement(c.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["max", "lastNotNull"])
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    panel = panel.line_width(1).fill_opacity(0).show_points(c.VisibilityMode.AUTO).span_nulls(False)
    panel = panel.color_scheme(board.FieldColor().mode(m.FieldColorModeId.PALETTE_CLASSIC))
    if bars:
        panel = panel.draw_style(c.GraphDrawStyle.BARS).fill_opacity(80).stacking(
            common.StackingConfig().mode(c.StackingMode.NORMAL).group("A")
        )
    if thresholds:
        panel = panel.thresholds(thresholds).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(c.GraphThresholdsStyleMode.DASHED)
        )
    else:
        panel = panel.thresholds(steps((None, GREEN)))
    if log:
        panel = panel.scale_distribution(
            common.ScaleDistributionConfig().type(c.ScaleDistribution.LOG).log(10)
        )
    if floor is not None:
        panel = panel.min(floor)
    if top is not None:
        panel = panel.max(top)
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.axis_width(LEFT) if wide else panel


def lanes(title, description, queries, states, size=(24, 8), none="no data", left=LEFT):
    """States over time, a lane for each series; equal neighbours become one bar."""
    panel = place(statetimeline.Panel(), title, description, size, none)
    for expr, legend, ref in refs(queries):
        panel = panel.with_target(target(expr, legend, ref))
    return (
        panel.mappings(mappings(states))
        .unit("none")
        .color_scheme(board.FieldColor().mode(m.FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, GREY)))
        .merge_values(True)
        .show_value(c.VisibilityMode.AUTO)
        .row_height(0.85)
        .line_width(0)
        .fill_opacity(85)
        .axis_width(left)
        .legend(common.VizLegendOptions().show_legend(False).display_mode(c.LegendDisplayMode.LIST)
                .placement(c.LegendPlacement.BOTTOM).calcs([]))  # fmt: skip
        .tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.SINGLE).sort(c.SortOrder.NONE))
    )


def distribution(title, description, expr, unit, size=(24, 9), none="no data"):
    """A histogram over time."""
    panel = place(heatmap.Panel(), title, description, size, none)
    panel = panel.with_target(target(expr, "{{le}}", form=p.PromQueryFormat.HEATMAP))
    return (
        panel.calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(h.HeatmapColorMode.SCHEME)
            .scheme("Spectral")
            .reverse(True)
            .scale(h.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.3)
            .steps(64)
            .fill(BLUE)
        )
        .y_axis(
            heatmap.YAxisConfig().unit(unit).axis_width(LEFT).axis_placement(c.AxisPlacement.LEFT)
            .reverse(False)
        )
        .cell_values(heatmap.CellValues().unit("short").decimals(0))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(c.HeatmapCellLayout.AUTO))
        .tooltip(heatmap.HeatmapTooltip().mode(c.TooltipDisplayMode.SINGLE).y_histogram(True))
        .show_legend()
        .unit(unit)
    )


@dataclass
class Column:
    """A column of a table: its query, and how the figure is written.

    Without a query it is a label that another column's query brings.
    """

    name: str
    expr: str = ""
    unit: str = "none"
    states: dict | None = None
    rows: tuple = ()
    decimals: int | None = None
    width: int | None = None
    link: tuple | None = None
    label: str = ""


def rows_of(title, description, columns, size=(24, 8), none="no data", sort=None):
    """A table that lays the answers of several queries side by side by their common labels."""
    panel = place(table.Panel(), title, description, size, none).unit("none")
    panel = panel.thresholds(steps((None, GREEN)))
    shown = {column.label for column in columns}
    order, rename = {}, {}
    hidden = {"Time": True} | {label: True for label in NODE.split(", ") if label not in shown}
    letters = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for index, column in enumerate(columns):
        if column.expr:
            ref = next(letters)
            panel = panel.with_target(
                target(column.expr, ref=ref, instant=True, form=p.PromQueryFormat.TABLE)
            )
            field = f"Value #{ref}"
            if not column.name:
                hidden[field] = True
                continue
        else:
            field = column.label or column.name
        order[field] = index
        rename[field] = column.name
        panel = override(panel, column)
    panel = panel.with_transformation(m.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(
        m.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": hidden, "indexByName": order, "renameByName": rename},
        )
    )
    panel = panel.show_header(True).cell_height(c.TableCellHeight.SM).filterable(True)
    if sort:
        by, descending = sort
        panel = panel.sort_by([common.TableSortByFieldState().display_name(by).desc(descending)])
    return panel


def override(panel, column):
    properties = []

    def put(key, value):
        properties.append(m.DynamicConfigValue(id_val=key, value=value))

    if column.unit != "none":
        put("unit", column.unit)
    if column.decimals is not None:
        put("decimals", column.decimals)
    if column.width:
        put("custom.width", column.width)
    if column.states:
        put("mappings", mappings(column.states))
    if column.rows:
        put("thresholds", steps_of(list(column.rows), calm="transparent").build())
    if column.rows or column.states:
        put("custom.cellOptions", {"type": "color-background", "mode": "basic"})
    if column.link:
        text, url = column.link
        put("links", [{"title": text, "url": url}])
    return panel.override_by_name(column.name, properties) if properties else panel


# --- boards ----------------------------------------------------------------------------------------------


def variable(name, label, values, description, everything):
    return (
        board.QueryVariable(name)
        .label(label)
        .description(description)
        .query(values)
        .definition(values)
        .datasource(DATASOURCE)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(m.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .refresh(m.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(m.VariableSort.ALPHABETICAL_ASC)
    )


def annotation(name, color, expr, title, text, tags, enabled=True):
    return (
        board.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(enabled)
        .hide(False)
        .icon_color(color)
        .expr(q(expr))
        .step("15s")
        .title_format(title)
        .text_format(text)
        .tag_keys(tags)
        .target(prometheus.Dataquery().expr(q(expr)).ref_id("Anno").datasource(DATASOURCE).range().interval("15s"))
    )  # fmt: skip


ANNOTATIONS = [
    ("Unit restarts", ORANGE, "sum by (%n, unit) (increase(@systemd_unit_restarts_total[%w])) > 0",
     "Restart of {{unit}}", "systemd restarted {{unit}} on {{instance}}.", "instance,unit", True),
    ("Leader changes", BLUE,
     # Filtered before the union: both have the same labels, and a side that stands still would hide the other.
     "sum by (%n) (increase(@etcd_leader_changes_total[%w]) > 0 or increase(@dqlite_leader_changes_total[%w]) > 0)",
     "Leader change", "{{instance}} saw an election.", "instance", True),
    ("Agent restarts", PURPLE,
     "sum by (%n) (changes(@@process_start_time_seconds[%w]) and on (%n) @exporter_build_info) > 0",
     "Agent restart", "The agent on {{instance}} started anew.", "instance", True),
    ("Firing alerts", RED, f"sum by (cluster, job, instance, alertname, severity) ({FIRING % ''}) > 0",
     "{{alertname}}", "{{severity}} {{alertname}} {{instance}} fires.", "alertname,severity,instance", False),
]  # fmt: skip


class Board:
    """A board under construction; panels get their ids in the order in which they come."""

    def __init__(self, uid, title, description, since):
        self.next = 1
        self.builder = (
            board.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags(["controlplane-exporter", "kubernetes"])
            .readonly()
            .timezone("browser")
            .tooltip(m.DashboardCursorSync.CROSSHAIR)
            .refresh("30s")
            .time(since, "now")
            .with_variable(
                board.DatasourceVariable("datasource")
                .label("Data source")
                .description("The Prometheus that scrapes the agents.")
                .type("prometheus")
            )
            .with_variable(variable(
                "cluster", "Cluster", 'label_values(controlplane_exporter_build_info, cluster)',
                "Empty where Prometheus attaches no label `cluster`; everything is shown then.", ".*"))
            .with_variable(variable(
                "job", "Job", 'label_values(controlplane_exporter_build_info{cluster=~"$cluster"}, job)',
                "The scrape job of the agents; one for each control plane.", ".+"))
            .with_variable(variable(
                "instance", "Instance",
                'label_values(controlplane_exporter_build_info{cluster=~"$cluster", job=~"$job"}, instance)',
                "The agents, which are the nodes.", ".+"))
            .link(
                board.DashboardLink("Control plane")
                .type(m.DashboardLinkType.DASHBOARDS)
                .tags(["controlplane-exporter"])
                .keep_time(True)
                .include_vars(True)
            )
        )  # fmt: skip
        for note in ANNOTATIONS:
            self.builder = self.builder.annotation(annotation(*note))

    def number(self, panel):
        panel.id(self.next)
        self.next += 1
        return panel

    def add(self, *panels):
        for panel in panels:
            self.builder.with_panel(self.number(panel))

    def row(self, title, panels=None):
        """A heading; with panels it is collapsed and holds them."""
        row = self.number(board.Row(title))
        for panel in panels or []:
            row.with_panel(self.number(panel))
        self.builder.with_row(row.collapsed(panels is not None))

    def build(self):
        made = self.builder.build()
        made.schema_version = 39
        return made
