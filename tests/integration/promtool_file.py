"""Writes what a real Prometheus scraped as a file for `promtool test rules`; nothing is typed by hand."""

from __future__ import annotations

import json
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from integration import stack

RULES = sorted((stack.ROOT / "deploy/prometheus/rules").glob("*.yml"))
DAY_S = 86_400


def metrics_of_rules() -> list[str]:
    """Every metric that a rule's expression names."""
    text = "\n".join(path.read_text() for path in RULES)
    return sorted({"up", *re.findall(r"gpuvigil_[a-z_]+", text)})


def query(prometheus: int, expression: str) -> list[dict]:
    """Ask Prometheus now."""
    text = urllib.parse.quote(expression)
    answer = json.loads(stack.fetch(f"http://127.0.0.1:{prometheus}/api/v1/query?query={text}"))
    return list(answer["data"]["result"])


@dataclass(kw_only=True)
class Recording:
    """Series on a grid of `step_s` from the first scrape on; a place without a sample is None."""

    step_s: int
    first_s: float
    series: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return max(len(values) for values in self.series.values())

    def place(self, time_s: float) -> int:
        """The number of the scrape at or after an instant."""
        return max(0, -int(-(time_s - self.first_s) // self.step_s))

    def seconds(self, time_s: float) -> int:
        """Seconds of promtool's clock."""
        return self.place(time_s) * self.step_s


def record(prometheus: int, step_s: int, minutes: int = 30) -> Recording:
    """Take every raw sample of the rules' metrics."""
    rows = [row for name in metrics_of_rules() for row in query(prometheus, f"{name}[{minutes}m]")]
    first_s = min(float(row["values"][0][0]) for row in rows)
    recording = Recording(step_s=step_s, first_s=first_s)
    targets = sorted({row["metric"]["instance"] for row in rows})
    length = 1 + max(round((float(row["values"][-1][0]) - first_s) / step_s) for row in rows)
    for row in rows:
        values: list[float | None] = [None] * length
        for at, value in row["values"]:
            values[round((float(at) - first_s) / step_s)] = float(value)
        # the last place is half scraped: one target has been, another not yet
        recording.series[name_of(row["metric"], targets)] = values[:-1]
    return recording


def name_of(labels: dict[str, str], targets: list[str]) -> str:
    """Write a series as PromQL does; ports differ from run to run, so a target has a number here."""
    pairs = []
    for name, value in sorted(labels.items()):
        if name != "__name__":
            shown = f"collector-{targets.index(value) + 1}:9512" if name == "instance" else value
            pairs.append(f"{name}={json.dumps(shown)}")
    return f"{labels['__name__']}{{{','.join(pairs)}}}"


def notation(values: list[float | None], more: int = 0) -> str:
    """Write values as promtool reads them, runs of one difference folded; `more` goes on as the last ten did.

    A gauge that stands still goes on as it is, a counter with its mean growth.
    """
    words: list[str] = []
    place = 0
    while place < len(values):
        value = values[place]
        if value is None:
            end = place
            while end < len(values) and values[end] is None:
                end += 1
            # what the target no longer shows is stale to Prometheus at once
            words.append("stale" if place else "_")
            words += [f"_x{end - place - 1}"] if end - place > 1 else []
        else:
            end, step = _run(values, place)
            words.append(
                f"{value:.12g}{step:+.12g}x{end - place - 1}" if end - place > 1 else f"{value:.12g}"
            )
        place = end
    if more and values[-1] is not None:
        past = values[-10] if len(values) >= 10 and values[-10] is not None else values[-1]
        growth = (values[-1] - past) / 9
        words.append(f"{values[-1] + growth:.12g}{growth:+.12g}x{more - 1}")
    elif more:
        words.append(f"_x{more}")
    return " ".join(words)


def _run(values: list[float | None], place: int) -> tuple[int, float]:
    """Return where a run of equal differences from `place` ends, and the difference."""
    first = values[place]
    if place + 1 >= len(values) or values[place + 1] is None:
        return place + 1, 0.0
    step, end = values[place + 1] - first, place + 2
    while end < len(values) and values[end] is not None and values[end] == values[end - 1] + step:
        end += 1
    return end, step


@dataclass(frozen=True, kw_only=True)
class Fires:
    """An alert that must be silent until `after_s` and firing, with these labels, at `by_s`."""

    alert: str
    after_s: int
    by_s: int
    labels: str = ""


def write(
    path: Path, head: list[str], recording: Recording, fires: list[Fires], silent_day: bool = False
) -> None:
    """Write the file. silent_day: go on for 24 h, in which nothing but the Watchdog may fire."""
    more = DAY_S // recording.step_s - recording.length if silent_day else 0
    lines = [f"# {line}" for line in head]
    lines += ["rule_files:", *(f"  - ../../../deploy/prometheus/rules/{rule.name}" for rule in RULES)]
    lines += [f"evaluation_interval: {60 if silent_day else recording.step_s}s", "tests:"]
    lines += [f"  - interval: {recording.step_s}s", "    input_series:"]
    for name, values in sorted(recording.series.items()):
        lines += [
            f"      - series: {json.dumps(name)}",
            f"        values: {json.dumps(notation(values, more))}",
        ]
    lines += ["    promql_expr_test:"]
    for one in fires:
        which = f'ALERTS{{alertname="{one.alert}",alertstate="firing"{one.labels}}}'
        if one.after_s:
            lines += _expects(f"count_over_time({which}[{one.after_s}s])", one.after_s, None)
        lines += _expects(f"max by (alertname) ({which})", one.by_s, f'{{alertname="{one.alert}"}}')
    if silent_day:
        other = 'ALERTS{alertstate="firing",alertname!="GpuvigilWatchdog"}'
        lines += _expects(f"count_over_time({other}[{DAY_S}s])", DAY_S - recording.step_s, None)
        watchdog = 'count_over_time(ALERTS{alertstate="firing",alertname="GpuvigilWatchdog"}[1d]) > bool 1400'
        lines += _expects(
            f"max by (alertname) ({watchdog})", DAY_S - recording.step_s, '{alertname="GpuvigilWatchdog"}'
        )
    path.write_text("\n".join(lines) + "\n")


def _expects(expression: str, at_s: int, labels: str | None) -> list[str]:
    samples = [] if labels is None else [f"          - labels: {json.dumps(labels)}", "            value: 1"]
    return [
        f"      - expr: {json.dumps(expression)}", f"        eval_time: {at_s}s",
        "        exp_samples:" + ("" if samples else " []"), *samples,
    ]  # fmt: skip
