"""What the demo says: one line an occurrence, a live line below on a terminal, a table at the end.

With --json everything goes to standard error, so that standard output holds the one object alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gpuvigil_cli.client import Json
from gpuvigil_cli.demo.match import Fault, Outcome, Verdict
from gpuvigil_cli.show import indented, severity, table
from gpuvigil_cli.text import duration, markup, short


class Screen:
    """One demo's output. Use as a context, so that the terminal is put back whatever happens."""

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self.console = console or Console(stderr=as_json, highlight=False)
        self.console.soft_wrap = not self.console.is_terminal
        self.started = time.monotonic()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def elapsed(self) -> float:
        """Return the seconds since the demo began."""
        return time.monotonic() - self.started

    def say(self, line: str) -> None:
        """Print one line of rich markup under the time since the demo began."""
        self.console.print(f"[dim]{self.elapsed():6.1f} s[/]  {line}")

    def status(self, line: str) -> None:
        """Replace the live line; nothing where there is no terminal."""
        self._live.update(Text(f"{self.elapsed():6.1f} s  {line}"))

    def fault_set(self, fault: Fault, limit_s: float) -> None:
        """Say that a simulator has just broken something, and what is expected of the collector."""
        expected = (
            "nobody's fault: must stay silent"
            if fault.silent
            else f"expected: {markup(fault.fault_class, 60)} within {duration(limit_s)}"
        )
        self.say(f"[magenta]set[/]    {markup(fault.fault, 80)} on {short(fault.target, 260)} ({expected})")

    def found(self, verdict: Verdict) -> None:
        """Say what the collector found, how long after onset, and why."""
        row = verdict.incident or {}
        self.say(
            f"[green]found[/]  {markup(row.get('class'), 60)} on {short(row.get('target'), 260)} "
            f"[bold]{_delay(verdict)} after onset[/] ({severity(row)})"
        )
        indented(self.console, 10, short(row.get("cause", "")))

    def unmatched(self, row: Json) -> None:
        """Say that an incident opened that matches no fault so far."""
        about = f"{markup(row.get('class'), 60)} on {short(row.get('target'), 260)}"
        self.say(f"[red]alarm[/]  {about} matches no fault so far")
        indented(self.console, 10, short(row.get("cause", "")))

    def result(
        self, outcome: Outcome, urls: dict[str, str], repair: Sequence[tuple[str, str, str]] = ()
    ) -> None:
        """Print injected against found, false alarms, and where to look; the live line has done its work.

        repair: name, time after the onset and words of each stage.
        """
        self._live.stop()
        rows = table("", "INJECTED", "FOUND", "AFTER", "TARGET")
        for verdict in outcome.verdicts:
            rows.add_row(
                "[green]ok[/]" if verdict.correct else "[red]NO[/]",
                markup(verdict.fault.fault, 80),
                markup(_found_words(verdict), 80),
                _delay(verdict),
                short(verdict.fault.target, 260),
            )
        self.console.print()
        self.console.print(rows)
        right = sum(verdict.correct for verdict in outcome.verdicts)
        self.console.print(
            f"\n{right} of {len(outcome.verdicts)} faults judged right, "
            f"{len(outcome.false_alarms)} false alarms, {duration(self.elapsed())} (the rule: docs/demo.md)"
        )
        if repair:
            stages = table("REPAIR", "AFTER ONSET", "WHAT THE COLLECTOR SAYS")
            for stage, after, what in repair:
                stages.add_row(markup(stage, 60), after, markup(what, 300))
            self.console.print()
            self.console.print(stages)
        for name, url in urls.items():
            self.console.print(f"  {name}: {url}", soft_wrap=True)


def _found_words(verdict: Verdict) -> str:
    if verdict.incident is not None:
        return str(verdict.incident.get("class"))
    return "nothing (right)" if verdict.correct else "nothing"


def _delay(verdict: Verdict) -> str:
    opened = (verdict.incident or {}).get("opened_ns")
    if not isinstance(opened, int):
        return "-"
    return duration(max(0.0, (opened - verdict.fault.injected_ns) / 1e9))
