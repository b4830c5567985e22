"""What `gpuvigil checkpoint` and `restart` print while a request goes its way: one line a state."""

from __future__ import annotations

from rich.console import Console

from gpuvigil_cli.client import Json
from gpuvigil_cli.text import duration, markup, quantity


def follow(console: Console, row: Json, shown: str) -> str:
    """Print the state where it is not the one shown before; return it."""
    state = str(row.get("state", ""))
    if state == shown:
        return shown
    nodes = row.get("nodes") if isinstance(row.get("nodes"), dict) else {}
    lines = {
        "asked": f"asked {_nodes(nodes)} of job {markup(row.get('job', ''))}, "
        f"request {markup(row.get('id', ''))}",
        "restarting": "every launcher was asked: the attempt that runs ends, the next begins",
        "armed": "armed on every node; the ranks agree on a step",
        "saved": f"saved step {markup(row.get('step'))} to {markup(row.get('path', ''))}, "
        f"{_mib(row.get('bytes'))} in {duration(quantity(row.get('seconds')))}",
    }  # fmt: skip
    console.print(lines.get(state, f"{markup(state)}: {markup(row.get('detail') or 'no detail', 400)}"))
    return state


def _nodes(nodes: object) -> str:
    count = len(nodes) if isinstance(nodes, dict) else 0
    return f"{count} node{'' if count == 1 else 's'}"


def _mib(size: object) -> str:
    bytes_ = quantity(size)
    return f"{bytes_ / 2**20:.1f} MiB" if bytes_ >= 1 << 20 else f"{bytes_ / 1024:.1f} KiB"
