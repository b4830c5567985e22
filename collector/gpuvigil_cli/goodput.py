"""What `gpuvigil goodput JOB` prints: time by bucket, losses, and the best checkpoint interval."""

from __future__ import annotations

from rich.console import Console

from gpuvigil_cli.client import Json
from gpuvigil_cli.show import table
from gpuvigil_cli.text import clock, duration, markup, quantity

_WORDS = {
    "useful": "steps that moved the job on",
    "init": "from the start to the first step",
    "data": "waiting for input",
    "checkpoint": "the loop stood still to save",
    "eval": "evaluation",
    "recompute": "steps done again after a failure",
    "slow": "longer steps than the job's own past",
    "detect": "from the last step to the end of the processes",
    "queue": "until the next attempt began",
    "restart": "from a new attempt to its first step",
}


def show_goodput(console: Console, row: Json) -> None:
    """Print one job's account."""
    wall = quantity(row.get("wall_seconds"))
    share = row.get("goodput")
    head = f"job {markup(row.get('job', ''))}: "
    if not isinstance(share, int | float) or not wall:
        console.print(f"{head}no step has ended yet")
        return
    lately = row.get("goodput_last_hour")
    hour = f", {100 * lately:.1f} % in the last hour" if isinstance(lately, int | float) else ""
    console.print(
        f"{head}[bold]{100 * share:.1f} %[/] of {duration(wall)} moved it on{hour}; "
        f"{markup(row.get('ranks', 0))} ranks, {markup(row.get('attempts', 1))} attempts"
    )
    seconds = row.get("seconds") if isinstance(row.get("seconds"), dict) else {}
    rows = table("TIME", "SHARE", "BUCKET", "WHAT IT IS")
    for bucket, words in _WORDS.items():
        spent = quantity((seconds or {}).get(bucket))
        if spent > 0:
            rows.add_row(duration(spent), f"{100 * spent / wall:5.1f} %", bucket, words)
    console.print(rows)
    _losses(console, row)
    _advice(console, row.get("checkpoint"))


def _losses(console: Console, row: Json) -> None:
    losses = [loss for loss in row.get("losses") or [] if isinstance(loss, dict)]
    if not losses:
        return
    console.print(f"\n{len(losses)} failures cost {quantity(row.get('gpu_hours_lost')):.2f} GPU-hours")
    rows = table("WHEN", "STEP", "LOST", "GPU-HOURS", "CLASS", "INCIDENT")
    for loss in losses:
        rows.add_row(
            clock(loss.get("at_ns")), markup(loss.get("step", "")), duration(quantity(loss.get("seconds"))),
            f"{quantity(loss.get('gpu_hours')):.3f}", markup(loss.get("class") or "unknown"),
            markup(loss.get("incident") or "none was open"),
        )  # fmt: skip
    console.print(rows)


def _advice(console: Console, found: object) -> None:
    if not isinstance(found, dict):
        return
    best, now = found.get("best_seconds"), found.get("interval_seconds")
    if not isinstance(best, int | float) or not isinstance(now, int | float):
        console.print('\nno checkpoint was seen: put the save into `with monitor.phase("checkpoint")`')
        return
    console.print(
        f"\ncheckpoints: {markup(found.get('saves'))}, each holds the loop for "
        f"{duration(quantity(found.get('write_seconds')))}, one every {duration(now)} of useful time; at "
        f"{quantity(found.get('failures_per_node_day')):.4f} failures a node-day the best interval is "
        f"[bold]{duration(best)}[/] (Young's rule: {duration(quantity(found.get('young_seconds')))}), for an "
        f"expected share of {100 * quantity(found.get('ettr_best')):.1f} % instead of "
        f"{100 * quantity(found.get('ettr_now')):.1f} %"
    )
