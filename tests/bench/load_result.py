"""What one load level of the collector's benchmark showed, whether it held, and its line of the table."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from dataclasses import dataclass

import harness
import load_generator

NODES_PER_GENERATOR = 500
SATURATED = 0.9  # of a core: a process of one busy thread has no more to give
ACK_P99_MAX_S = 1.0
TICK_P99_MAX_S = 1.0


@dataclass
class Result:
    """One load level."""

    nodes: int
    seconds: float
    watched: float
    sent: int
    acked: int
    megabytes_s: float
    refused: dict[str, int]
    errors: dict[str, int]
    lost_streams: int
    ack: Counter[int]
    durable: Counter[int]
    late: Counter[int]
    cpu_ingest: list[float]
    cpu_brain: list[float]
    cpu_generator: float
    rss_mib: float
    pss_mib: float
    tick_p99: float
    ticks: int
    slowest: str

    def broken(self) -> list[str]:
        """Why this level is too much; empty while it holds."""
        reasons = [f"{count} refused: {reason}" for reason, count in self.refused.items()]
        reasons += [f"{count} x {error}" for error, count in self.errors.items()]
        if self.lost_streams:
            reasons.append(f"{self.lost_streams} streams lost")
        if self.acked < 0.98 * self.sent:
            reasons.append(f"only {self.acked} of {self.sent} batches acknowledged in the window")
        if quantile(self.ack, 0.99) > ACK_P99_MAX_S:
            reasons.append(f"p99 ack {quantile(self.ack, 0.99) * 1e3:.0f} ms")
        if not self.tick_p99 <= TICK_P99_MAX_S:
            reasons.append(f"p99 tick at most {self.tick_p99} s")
        if self.cpu_generator / max(1, -(-self.nodes // NODES_PER_GENERATOR)) >= SATURATED:
            reasons.append("INVALID: the generator is at its own limit")
        if self.ticks < 0.9 * self.watched:
            reasons.append(f"{self.ticks} ticks in {self.watched:.0f} s")
        return reasons

    def limiting(self) -> str:
        """The process that was nearest to a whole core, and whether the generator kept its own times."""
        shares = {
            "ingest": statistics.fmean(self.cpu_ingest), "brain": statistics.fmean(self.cpu_brain),
            "generators": self.cpu_generator,
        }  # fmt: skip
        late = quantile(self.late, 0.99) * 1e3
        words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        busiest = max(shares, key=shares.__getitem__)
        full = f"{busiest} saturates its core" if shares[busiest] >= SATURATED else f"busiest is {busiest}"
        return (
            f"{full} ({words} of a core, {100 * sum(shares.values()):.0f} % of "
            f"{100 * (os.cpu_count() or 1)} % in all; generator late p99 {late:.0f} ms); "
            f"slowest stage of a tick: {self.slowest}"
        )


def quantile(histogram: Counter[int], q: float) -> float:
    """Upper edge in seconds of the bucket that holds the quantile; NaN of nothing."""
    total, seen = sum(histogram.values()), 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= q * total:
            return float(1e-4 * load_generator.LATENCY_STEP**bucket)
    return math.nan


def row(result: Result) -> list[str]:
    """One line of the table."""

    def milliseconds(histogram: Counter[int], q: float) -> str:
        return f"{quantile(histogram, q) * 1e3:.1f}"

    return [
        str(result.nodes), f"{result.sent / result.seconds:.0f}", f"{result.megabytes_s:.2f}",
        harness.mean_with_bounds([100 * share for share in result.cpu_ingest]),
        harness.mean_with_bounds([100 * share for share in result.cpu_brain]),
        f"{100 * result.cpu_generator:.0f}",
        f"{result.rss_mib:.0f} / {result.pss_mib:.0f}",
        f"{milliseconds(result.ack, 0.5)} / {milliseconds(result.ack, 0.99)} (n={sum(result.ack.values())})",
        f"{milliseconds(result.durable, 0.5)} / {milliseconds(result.durable, 0.99)}",
        f"<= {result.tick_p99:g} s (n={result.ticks})", "; ".join(result.broken()) or "holds",
    ]  # fmt: skip


HEADER = (
    "nodes", "batches/s", "MB/s", "ingest CPU %", "brain CPU %", "generator CPU %", "RSS / PSS MiB",
    "received ack p50 / p99 ms", "durable ack p50 / p99 ms", "tick p99", "verdict",
)  # fmt: skip
