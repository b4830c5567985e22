"""The kernel log as events: facility 0 alone, parsed by the grammar, with storms coalesced.

A user can make the driver write thousands of lines a second (Xid 13, 31, 43). Per kind of line a token
bucket lets the first through at once; the rest is counted, and the count travels in the next event's
`count`, so nothing is lost of the number. Reading itself is held to a rate too: the pipe or ring then waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_grammar import Fact, Grammar, clean, normalise_pci
from gpuvigil_agent.kernel_sources import (
    Counters,
    KernelRecord,
    choose,
    count,
    journal_source,
    kmsg_source,
)
from gpuvigil_protos import entity

__all__ = [
    "KernelRecord", "choose", "journal_source", "kmsg_source", "normalise_pci", "watch",
]  # fmt: skip

_KERN: Final = 0  # LOG_KERN: only the kernel itself can write it
_BURST: Final = 5.0  # events of one key that go at once
_PER_SECOND: Final = 1.0
_KEYS_MAX: Final = 256
_RECORDS_PER_SECOND_MAX: Final = 1000  # about 2 % of a core
_FLUSH_S: Final = 1.0

GpuByPci = Callable[[str], str | None]
OnEvent = Callable[[AgentEvent], None]


@dataclass(slots=True)
class _Bucket:
    """Tokens of one key, and what was held back since the last event: the newest event, how many."""

    tokens: float = _BURST
    filled_s: float = 0.0
    held: AgentEvent | None = None
    held_count: int = 0
    first_ns: int = 0


@dataclass(slots=True)
class Coalescer:
    """Lets few events of each key through and counts the rest exactly. Knows time only from its caller."""

    counters: Counters
    buckets: dict[tuple[str, ...], _Bucket] = field(default_factory=dict)

    def offer(self, key: tuple[str, ...], event: AgentEvent, now_s: float) -> AgentEvent | None:
        """Return the event to send now, with `count` when it stands for more than itself; None: held."""
        if key not in self.buckets and len(self.buckets) >= _KEYS_MAX:
            key = key[:4]  # too many different details: one bucket a code and GPU
        bucket = self.buckets.setdefault(key, _Bucket(filled_s=now_s))
        bucket.first_ns = bucket.first_ns or event.time_ns
        bucket.held, bucket.held_count = event, bucket.held_count + 1
        return self._take(bucket, now_s)

    def flush(self, now_s: float) -> list[AgentEvent]:
        """Return what may go by now; forget keys that are quiet."""
        ready = [
            event for bucket in self.buckets.values() if (event := self._take(bucket, now_s)) is not None
        ]
        self.buckets = {k: b for k, b in self.buckets.items() if b.held_count or b.tokens < _BURST}
        return ready

    def rest(self) -> list[AgentEvent]:
        """Return everything that is held, whatever the rate: the source has ended."""
        return [event for bucket in self.buckets.values() if (event := _release(bucket)) is not None]

    def _take(self, bucket: _Bucket, now_s: float) -> AgentEvent | None:
        bucket.tokens = min(_BURST, bucket.tokens + max(0.0, now_s - bucket.filled_s) * _PER_SECOND)
        bucket.filled_s = now_s
        if not bucket.held_count or bucket.tokens < 1:
            return None
        bucket.tokens -= 1
        count(self.counters, "coalesced", bucket.held_count - 1)
        return _release(bucket)


def _release(bucket: _Bucket) -> AgentEvent | None:
    event, number, first_ns = bucket.held, bucket.held_count, bucket.first_ns
    bucket.held, bucket.held_count, bucket.first_ns = None, 0, 0
    if event is not None and number > 1:
        event.fields.update(count=str(number), first_ns=str(first_ns))
    return event


async def watch(
    source: AsyncIterator[KernelRecord], gpu_by_pci: GpuByPci, on_event: OnEvent, counters: Counters
) -> None:
    """Turn records into events until the source ends; `on_event` is called on the loop.

    gpu_by_pci takes `dddd:bb:dd` in lower case (kernel_grammar.normalise_pci) and returns a UUID or None.
    counters: records, refused_facility, events, coalesced, pauses, and those of the source.
    Raises what the source raises.
    """
    grammar, coalescer = Grammar(), Coalescer(counters)
    flusher = asyncio.create_task(_flush_often(coalescer, on_event))
    second, in_second = time.monotonic(), 0
    try:
        async for record in source:
            in_second += 1
            event = event_of(record, grammar, gpu_by_pci, counters)
            if event is not None:
                now_event = coalescer.offer(_key(event), event, time.monotonic())
                if now_event is not None:
                    on_event(now_event)
            if in_second >= _RECORDS_PER_SECOND_MAX:
                left = second + 1 - time.monotonic()
                count(counters, "pauses", int(left > 0))
                await asyncio.sleep(max(0.0, left))
                second, in_second = time.monotonic(), 0
    finally:
        flusher.cancel()
        for event in coalescer.rest():
            on_event(event)


async def _flush_often(coalescer: Coalescer, on_event: OnEvent) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        for event in coalescer.flush(time.monotonic()):
            on_event(event)


def event_of(
    record: KernelRecord, grammar: Grammar, gpu_by_pci: GpuByPci, counters: Counters
) -> AgentEvent | None:
    """Return the event of one record; None when it says nothing known, or is not the kernel's own."""
    count(counters, "records")
    if record.facility != _KERN:
        count(counters, "refused_facility")
        return None
    fact = grammar.parse(record.text)
    if fact is None:
        return None
    count(counters, "events")
    return AgentEvent(
        time_ns=record.time_ns,
        kind=fact.kind,
        origin="kernel_log",
        entity=_entity_of(fact, gpu_by_pci),
        code=fact.code,
        text=clean(record.text),
        fields=dict(fact.fields),
        synthetic=fact.synthetic,
    )


def _entity_of(fact: Fact, gpu_by_pci: GpuByPci) -> str:
    uuid = gpu_by_pci(fact.pci) if fact.pci and fact.kind != "sxid" else None
    return entity.gpu(uuid) if uuid else entity.NODE


def _key(event: AgentEvent) -> tuple[str, ...]:
    """Events alike in all but the process are one key, so that no detail of a line is coalesced away."""
    details = sorted(f"{key}={value}" for key, value in event.fields.items() if key != "pid")
    return (event.kind, str(event.code), event.entity, str(event.synthetic), *details)
