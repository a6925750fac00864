"""The Grafana dashboard, as one readable table.

`python -m deploy.grafana.dashboard` writes dashboards/vox_serve.json; nobody edits that by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

FILE = Path(__file__).parent / "dashboards" / "vox_serve.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
MODEL = 'model=~"$model"'


@attrs.frozen
class Panel:
    """A graph, or (`now`) the latest value of it; `lines` are pairs of expression and legend."""

    title: str
    unit: str
    description: str
    lines: tuple[tuple[str, str], ...]
    now: bool = False
    width: int = 8


def rate(name: str, by: str = "", labels: str = "") -> str:
    """Per second, summed over everything but the labels `by`."""
    inside = ", ".join(filter(None, (MODEL, labels)))
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate(vox_serve_{name}{{{inside}}}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = "", labels: str = "") -> str:
    grouped = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', grouped, labels)})"


def quantiles(name: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    return tuple(
        (quantile(share, name, labels=labels), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)
    )


def gauge(name: str, by: str = "", labels: str = "") -> str:
    inside = ", ".join(filter(None, (MODEL, labels)))
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (vox_serve_{name}{{{inside}}})"


def share(part: str, whole: str, labels: str = "") -> str:
    return f"{rate(part, labels=labels)} / {rate(whole)}"


IN_TIME = share("stream_underrun_seconds_bucket", "stream_underrun_seconds_count", 'le="0.1"')
FAILED = share("requests_total", "requests_total", 'outcome=~"error|timeout"')
RESTORED = share("prompt_positions_total", "prompt_positions_total", 'source="restored"')
HITS = share("prefix_lookups_total", "prefix_lookups_total", 'result="hit"')
MEAN_BATCH = share("batch_size_sum", "batch_size_count")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Users": (
        Panel(
            "First audio, streamed",
            "s",
            "From a request's arrival to its first sound. Conversation feels slow from 0.5 s.",
            quantiles("time_to_first_audio_seconds", 'mode="stream"'),
        ),
        Panel(
            "First audio, whole",
            "s",
            "The same for requests that are answered as one file: the engine's first sound, "
            "not the client's.",
            quantiles("time_to_first_audio_seconds", 'mode="whole"'),
        ),
        Panel(
            "Late streams",
            "percentunit",
            "Share of streams whose audio came more than 0.1 s after a player needed it.",
            ((f"1 - {IN_TIME}", "late by more than 0.1 s"),),
        ),
        Panel(
            "Real-time factor",
            "none",
            "Time to speak divided by the length of the audio, including the queue; playback "
            "needs less than 1.",
            quantiles("real_time_factor"),
        ),
        Panel(
            "Gap between chunks",
            "s",
            "Time between two pieces of one request's audio.",
            quantiles("inter_chunk_gap_seconds"),
        ),
        Panel(
            "How speech ended",
            "reqps",
            "stop: the model ended it; length: cut at the limit, which is often a runaway.",
            ((rate("finished_total", "reason"), "{{reason}}"),),
        ),
        Panel(
            "Requests by outcome",
            "reqps",
            "rejected: no room; invalid: the client's fault; error, timeout: ours.",
            ((rate("requests_total", "mode, outcome"), "{{mode}} {{outcome}}"),),
        ),
        Panel(
            "Failed requests",
            "percentunit",
            "Share of requests that ended in error or timeout.",
            ((FAILED, "failed"),),
        ),
        Panel(
            "Time of a request",
            "s",
            "From arrival to the last sound, for requests that succeeded.",
            quantiles("request_seconds"),
        ),
    ),
    "Capacity": (
        Panel(
            "Slots and queue",
            "none",
            "Requests being spoken (in total and per replica), requests that wait, and slots.",
            (
                (gauge("slots_used"), "used"),
                (gauge("slots_used", "model, replica"), "{{model}} {{replica}}"),
                (gauge("requests_waiting"), "waiting"),
                (gauge("slots"), "slots"),
            ),
        ),
        Panel("Time in the queue", "s", "Time until a slot was free.", quantiles("queue_seconds")),
        Panel(
            "Batch size",
            "none",
            "Rows of one engine step.",
            ((MEAN_BATCH, "mean"), (quantile(0.95, "batch_size"), "p95")),
        ),
        Panel(
            "Step time by phase",
            "s",
            "p95. A step makes one frame for each row; all phases together must take less time "
            "than a frame lasts (0.08 s for CSM).",
            ((quantile(0.95, "engine_step_seconds", "phase"), "{{phase}}"),),
        ),
        Panel(
            "Audio made",
            "none",
            "Seconds of audio per second.",
            ((rate("audio_seconds_total", "model"), "{{model}}"),),
        ),
        Panel(
            "Prefix cache",
            "percentunit",
            "Share of prompt positions, and of prompts, served from kept prefixes.",
            (
                (RESTORED, "positions"),
                (HITS, "prompts"),
            ),
        ),
        Panel(
            "Kept in memory",
            "none",
            "Cached prefixes, conversations and voices; open WebSocket sessions.",
            (
                (gauge("prefixes"), "prefixes"),
                (gauge("conversations"), "conversations"),
                (gauge("voices"), "voices"),
                (gauge("websocket_sessions"), "WebSocket sessions"),
            ),
        ),
        Panel(
            "Text accepted",
            "none",
            "Characters per second.",
            ((rate("text_characters_total", "model"), "{{model}}"),),
        ),
        Panel(
            "Processor cores",
            "none",
            "Cores that each process uses.",
            ((rate("process_cpu_seconds_total", "model, process"), "{{process}} {{model}}"),),
        ),
    ),
    "Engines": (
        Panel(
            "Up",
            "none",
            "1 while the engine worker lives.",
            ((gauge("engine_up", "model, replica"), "{{model}} {{replica}}"),),
            now=True,
            width=4,
        ),
        Panel(
            "Ready",
            "none",
            "1 while requests are accepted.",
            ((gauge("ready", "model"), "{{model}}"),),
            now=True,
            width=4,
        ),
        Panel(
            "Since the last step",
            "s",
            "Age of the engine's last report; idle engines report every 0.25 s.",
            (
                (
                    "max by (model, replica) (time() - "
                    f"vox_serve_engine_last_step_timestamp_seconds{{{MODEL}}})",
                    "{{model}} {{replica}}",
                ),
            ),
        ),
        Panel(
            "Restarts in the last hour",
            "none",
            "Restarts of the server by its supervisor, and of workers by the server.",
            (
                (
                    "sum by (model, process) (changes("
                    f"vox_serve_process_start_time_seconds{{{MODEL}}}[1h]))",
                    "{{process}} {{model}}",
                ),
                (
                    f"sum by (model, replica) (increase("
                    f"vox_serve_worker_restarts_total{{{MODEL}}}[1h]))",
                    "worker of {{model}} {{replica}}",
                ),
            ),
        ),
        Panel(
            "Memory of the processes",
            "bytes",
            "Resident memory.",
            (
                (
                    gauge("process_resident_memory_bytes", "model, process, replica"),
                    "{{process}} {{model}} {{replica}}",
                ),
            ),
        ),
        Panel(
            "Memory of the models",
            "bytes",
            "Memory an engine holds on its device; for a GPU, also what all its processes hold.",
            (
                (gauge("engine_memory_bytes", "model, kind"), "{{model}} {{kind}}"),
                (
                    gauge("device_memory_bytes", "model, replica, kind"),
                    "GPU of {{model}} {{replica}}, {{kind}}",
                ),
            ),
        ),
        Panel(
            "Descriptors",
            "percentunit",
            "Open files and sockets, as a share of the limit.",
            (
                (
                    f"{gauge('process_open_fds', 'model, process')}"
                    f" / {gauge('process_max_fds', 'model, process')}",
                    "{{process}} {{model}}",
                ),
            ),
        ),
        Panel(
            "Engine errors",
            "reqps",
            "By kind; also codes from the model that the codec does not know.",
            (
                (rate("engine_errors_total", "kind"), "{{kind}}"),
                (rate("reserved_codes_total"), "reserved codes"),
            ),
        ),
        Panel(
            "Versions",
            "none",
            "Versions of vox_serve and torch, and the device.",
            (
                (
                    f"sum by (model, version, torch, device) (vox_serve_build_info{{{MODEL}}})",
                    "{{model}}: vox_serve {{version}}, torch {{torch}}, {{device}}",
                ),
            ),
            now=True,
        ),
    ),
    "Refusals": (
        Panel(
            "Rejected requests",
            "reqps",
            "By reason.",
            ((rate("admission_rejections_total", "reason"), "{{reason}}"),),
        ),
        Panel(
            "HTTP responses",
            "reqps",
            "cut: a stream that was not completed; 499: the client left before the response.",
            ((rate("http_responses_total", "route, code"), "{{route}} {{code}}"),),
        ),
        Panel(
            "Clients that left",
            "reqps",
            "By what they had received when they left.",
            ((rate("client_disconnects_total", "phase"), "{{phase}}"),),
        ),
    ),
}


def build() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    board = (
        dashboard.Dashboard("vox_serve")
        .uid("vox-serve")
        .description("Text-to-speech: what users hear, what it costs, what is broken.")
        .tags(["vox_serve", "tts"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(
            dashboard.QueryVariable("model")
            .label("Model")
            .datasource(SOURCE)
            .query("label_values(vox_serve_engine_up, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(text="All", value="$__all", selected=True))
        )
    )
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(draw(panel))
    made: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(made["panels"], 1):
        panel["id"] = number
    return {"id": None, **made}


def draw(panel: Panel) -> Any:
    """The builder of a panel."""
    drawn: Any = stat.Panel() if panel.now else _graph()
    drawn.title(panel.title).description(panel.description).unit(panel.unit)
    drawn.datasource(SOURCE).height(8).span(panel.width)
    for letter, (expression, legend) in zip("ABCDEFGH", panel.lines, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter)
        query.datasource(SOURCE)
        drawn.with_target(query.instant() if panel.now else query.range())
    return drawn


def _graph() -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(8)
        .show_points(VisibilityMode.NEVER)
        .legend(legend.placement(LegendPlacement.BOTTOM))
        .tooltip(tooltip)
    )


def text() -> str:
    """The file's content."""
    return json.dumps(build(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
