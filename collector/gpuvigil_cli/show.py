"""Tables and sentences of `status`, `nodes` and `incidents`. All text from the API passes `markup` first."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from gpuvigil_cli.client import Json
from gpuvigil_cli.text import clock, duration, markup, short, since

SEVERITY_STYLE = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def table(*columns: str) -> Table:
    """Return an empty table that stays readable at 80 columns and without colour."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        # the last column takes what is left and wraps; the others keep whole words
        made.add_column(column, overflow="fold", ratio=1 if column == columns[-1] else None)
    return made


def severity(row: Json) -> str:
    """Return the severity with its colour; the word stays where there is no colour."""
    word = str(row.get("severity", ""))
    style = SEVERITY_STYLE.get(word)
    return f"[{style}]{word}[/]" if style else markup(word, 20)


def kind(row: Json) -> str:
    """Return an incident's class, and that it is a drill where it is one: nothing of it is broken."""
    return markup(row.get("class", ""), 60) + (" (drill)" if row.get("synthetic") is True else "")


def show_status(console: Console, health: Json) -> None:
    """Say in a few lines how the collector and its fleet are."""
    nodes, up = health.get("nodes", 0), health.get("nodes_up", 0)
    console.print(f"collector  [bold]{markup(health.get('state', 'unknown'), 40)}[/]{_learning(health)}")
    console.print(f"up since   {clock(health.get('started_ns'))}")
    console.print(
        f"fleet      {markup(up)} of {markup(nodes)} nodes up, {markup(health.get('gpus', 0))} GPUs"
    )
    opened = health.get("incidents_open", 0)
    hint = ", see: gpuvigil incidents" if opened else ""
    console.print(f"incidents  {markup(opened)} open{hint}")
    for line in health.get("detail") or []:
        console.print(f"           {markup(line)}")


def _learning(health: Json) -> str:
    until, now = health.get("learning_until_ns"), health.get("now_ns")
    if not isinstance(until, int) or not isinstance(now, int) or until <= now:
        return ""
    left = duration((until - now) / 1e9)
    return f" (statistics are learning until {clock(until)}, {left} more; facts notify already)"


def show_jobs(console: Console, jobs: list[Json]) -> None:
    """Print one row a job; nothing where there is none."""
    if not jobs:
        return
    rows = table("JOB", "STATE", "RANKS", "STEP", "S/STEP", "LOSS", "PHASES, INCIDENTS")
    for job in jobs:
        seconds, loss = job.get("step_seconds"), job.get("loss")
        rows.add_row(
            markup(job.get("job", ""), 60),
            markup(job.get("state", ""), 20),
            f"{markup(job.get('ranks_up', 0), 8)}/{markup(job.get('ranks', 0), 8)}",
            markup("-" if job.get("step") is None else job["step"], 20),
            "-" if not isinstance(seconds, float) else f"{seconds:.3f}",
            "-" if not isinstance(loss, float) else f"{loss:.4g}",
            markup(_parts(job), 200),
        )
    console.print(rows)


def _parts(job: Json) -> str:
    phases, seconds = job.get("phases"), job.get("step_seconds")
    words = []
    if isinstance(phases, dict) and isinstance(seconds, float) and seconds > 0:
        words = [f"{name} {100 * float(part) / seconds:.0f} %" for name, part in phases.items()]
    opened = job.get("incidents")
    return " ".join([*words, *(f"[{one}]" for one in (opened if isinstance(opened, list) else []))])


def show_nodes(console: Console, nodes: list[Json], now_ns: int) -> None:
    """Print one row a node."""
    if not nodes:
        console.print("no node has connected yet; start one with: gpuvigil-agent --config FILE")
        return
    rows = table("NODE", "STATE", "GPUS", "LAST SEEN", "INCIDENTS", "SOURCE")
    for node in nodes:
        state = markup(node.get("state", ""), 20)
        rows.add_row(
            markup(node.get("node", ""), 80),
            f"[red]{state}[/]" if state == "silent" else state,
            f"{markup(node.get('gpus', 0), 8)}/{markup(node.get('gpus_expected', 0), 8)}",
            since(node.get("last_seen_ns"), now_ns),
            markup(node.get("incidents_open", 0), 8),
            markup(_source(node), 120),
        )
    console.print(rows)


def _source(node: Json) -> str:
    words = [str(node.get("gpu_source") or "none"), str(node.get("driver_version") or "")]
    return " ".join(filter(None, words)) + (f"; {node['note']}" if node.get("note") else "")


def show_incidents(console: Console, incidents: list[Json], *, every: bool) -> None:
    """Print each incident as a line of facts and a line that says why."""
    if not incidents:
        console.print("no incidents" if every else "no open incidents")
        return
    for row in incidents:
        opened = clock(row.get("opened_ns"))
        console.print(
            f"[bold]{markup(row.get('id', ''), 100)}[/]  {severity(row)}  "
            f"{kind(row)}  {short(row.get('target', ''), 260)}  "
            f"{markup(row.get('state', ''), 20)}  since {opened}"
        )
        indented(console, 4, short(row.get("cause", "")))


def indented(console: Console, by: int, text: str) -> None:
    """Print markup under an indent that its wrapped lines keep; one line where nobody's screen wraps it."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, by)))
    else:
        console.print(" " * by + text)
