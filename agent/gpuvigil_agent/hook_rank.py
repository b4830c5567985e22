"""One registered rank: its ring becomes samples and steps, its end an event.

Cost: a few microseconds a rank and tick, 3 us a step. Times of the ring are monotonic; they become wall time
by this agent's own clocks, so that a process whose clock is wrong does not move its steps.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gpuvigil import layout, ring_read
from gpuvigil.ring_read import Live, Record
from gpuvigil_agent.hook_peer import Identity, Peer
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import catalog, entity

ROWS_PER_TICK: Final = 50
_PENDING_NS: Final = 2_000_000_000
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# the ring's 8 phases -> the metric of each; init and compile are one
_PHASE_METRICS: Final = (
    catalog.RANK_DATA_SECONDS, catalog.RANK_FORWARD_SECONDS, catalog.RANK_BACKWARD_SECONDS,
    catalog.RANK_OPTIMIZER_SECONDS, catalog.RANK_CHECKPOINT_SECONDS, catalog.RANK_EVAL_SECONDS,
)  # fmt: skip


class Clocks(NamedTuple):
    """One instant on both clocks, ns."""

    monotonic_ns: int
    wall_ns: int


class Step(NamedTuple):
    """One row for the wire: when the step ended (wall time), and its numbers."""

    end_ns: int
    samples: list[Sample]


class Rank:
    """A live registration. `pidfd` is watched by the intake, which closes everything by `close`."""

    def __init__(
        self, peer: Peer, identity: Identity, generation: int, ring: mmap.mmap, control: mmap.mmap,
        pidfd: int, stacks: int = -1,
    ) -> None:  # fmt: skip
        """stacks: descriptor of the file that the process writes its stacks into, -1 for none."""
        self.peer, self.identity, self.generation = peer, identity, generation
        self.ring, self.control, self.pidfd, self.stacks = ring, control, pidfd, stacks
        self.closed = False
        self.entity = entity.rank(identity.job, identity.rank)
        self.exit_said = False
        self.lost = self.corrupt = 0
        self.live = Live(0, -1, 0, 0, 0)
        self._next = 0
        self._since_ns = ring_read.header(ring).made_ns

    def resume_from(self, earlier: Rank) -> None:
        """Go on where an earlier registration of the same ring had got to."""
        self._next, self.live = earlier._next, earlier.live

    def sample(self, clocks: Clocks) -> Iterator[Sample]:
        """Read how the rank is now. A ring whose writer was busy yields what was last read of it."""
        self._look()
        age = self._age(clocks)
        beat = ring_read.heartbeat(self.ring)
        yield Sample(catalog.RANK_UP, self.entity, 1.0)
        if 0 < beat <= clocks.monotonic_ns:
            yield Sample(catalog.RANK_HEARTBEAT_AGE_SECONDS, self.entity, (clocks.monotonic_ns - beat) / 1e9)
        yield Sample(catalog.RANK_STEP_AGE_SECONDS, self.entity, age)
        yield Sample(catalog.RANK_PHASE, self.entity, float(self.live.phase))
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.peer.pid}/statm").read_text().split()[1])
            yield Sample(catalog.RANK_MEMORY_BYTES, self.entity, float(pages * _PAGE))

    def _look(self) -> None:
        try:
            self.live = ring_read.live(self.ring)
        except ring_read.LayoutError:
            self.corrupt += 1

    def _age(self, clocks: Clocks) -> float:
        since = self.live.last_end_ns if 0 < self.live.last_end_ns <= clocks.monotonic_ns else self._since_ns
        return max(0, clocks.monotonic_ns - since) / 1e9

    def steps(self, clocks: Clocks) -> list[Step]:
        """Return the steps that ended since the last call, at most ROWS_PER_TICK rows."""
        self._next = min(self._next, self.live.written)  # no writer of ours counts back
        records, lost = ring_read.records(self.ring, self._next, self.live.written)
        ready = _ready(records, clocks)
        self._next = records[ready].number if ready < len(records) else self.live.written
        records = records[:ready]
        self.lost += lost
        share = -(-len(records) // ROWS_PER_TICK) or 1
        chunks = [records[at : at + share] for at in range(0, len(records), share)]
        return [step for chunk in chunks if (step := self._step(chunk, clocks)) is not None]

    def _step(self, chunk: list[Record], clocks: Clocks) -> Step | None:
        last = chunk[-1]
        if not 0 < last.end_ns <= clocks.monotonic_ns:
            self.corrupt += 1
            return None
        flags = 0
        for record in chunk:
            flags |= record.flags
        values = {
            catalog.RANK_STEP: float(last.step),
            catalog.RANK_STEPS_MERGED: float(len(chunk)),
            catalog.RANK_STEP_SECONDS: _mean(record.seconds for record in chunk),
            catalog.RANK_SETUP_SECONDS: _mean(sum(record.phases[6:]) for record in chunk),
            catalog.RANK_TOKENS: _mean(record.tokens for record in chunk),
            catalog.RANK_LOSS: last.loss,
            catalog.RANK_GRADIENT_NORM: last.gradient_norm,
            catalog.RANK_CUDA_ALLOCATED_BYTES: last.allocated,
            catalog.RANK_STEP_FLAGS: float(flags & 0xFFFF & ~layout.FLAG_PENDING),
        }
        for place, metric in enumerate(_PHASE_METRICS):
            values[metric] = _mean(record.phases[place] for record in chunk)
        samples = [
            Sample(metric, self.entity, value if metric.low <= value <= metric.high else math.nan)
            for metric, value in values.items()
        ]
        return Step(clocks.wall_ns - (clocks.monotonic_ns - last.end_ns), samples)

    def up_fields(self) -> dict[str, str]:
        """Say who this is, for the collector."""
        who = self.identity
        fields = {
            "job": who.job, "rank": str(who.rank), "local_rank": str(who.local_rank),
            "world_size": str(who.world_size), "restart": str(who.restart),
            "attempt": str(who.attempt), "launcher": who.launcher,
            "program": who.program, "gpu": who.gpu, "uid": str(self.peer.uid), "pid": str(self.peer.pid),
            "generation": str(self.generation), "workload": self.peer.workload[:200],
            "on_request": who.on_request,
        }  # fmt: skip
        return {key: value for key, value in fields.items() if value}

    def down_fields(self, reason: str, clocks: Clocks) -> dict[str, str]:
        """Say how it ended: exit, died or replaced; the last step, and the phase it was in."""
        self._look()
        return {
            "job": self.identity.job, "rank": str(self.identity.rank), "reason": reason,
            "step": str(self.live.step), "phase": layout.PHASES[self.live.phase],
            "seconds_since_step": f"{self._age(clocks):.1f}", "generation": str(self.generation),
            "world_size": str(self.identity.world_size),
        }  # fmt: skip

    def ask_to_save(self, number: int, request: str, deadline_ns: int) -> bool:
        """Write a request into the process's control page; False where its owner takes none.

        The number is written last: who sees it sees the rest. It only grows, so a request that comes twice,
        or late, changes nothing.
        """
        if self.identity.on_request != "save":
            return False
        (now,) = struct.unpack_from("<Q", self.control, layout.CONTROL_REQUEST_AT)
        if number > now:
            layout.CONTROL_BODY.pack_into(
                self.control, layout.CONTROL_BODY_AT, deadline_ns, request.encode()[:32]
            )
            struct.pack_into("<Q", self.control, layout.CONTROL_REQUEST_AT, number)
        return True

    def ask_for_evidence(self, number: int) -> None:
        """Ask the hook's thread for torch's records; a number that comes twice changes nothing."""
        (now,) = struct.unpack_from("<Q", self.control, layout.CONTROL_EVIDENCE_AT)
        if number > now:
            struct.pack_into("<Q", self.control, layout.CONTROL_EVIDENCE_AT, number)

    def close(self) -> None:
        """Let go of ring, page, process and the file for stacks."""
        self.closed = True
        self.ring.close()
        self.control.close()
        os.close(self.pidfd)
        if self.stacks >= 0:
            os.close(self.stacks)


def _ready(records: list[Record], clocks: Clocks) -> int:
    """Count the records before the first whose values are still on their way, and not for long."""
    for place, record in enumerate(records):
        if record.flags & layout.FLAG_PENDING and clocks.monotonic_ns - record.end_ns < _PENDING_NS:
            return place
    return len(records)


def _mean(values: Iterator[float]) -> float:
    """Mean of what is there; NaN of nothing."""
    found = [value for value in values if value == value]  # noqa: PLR0124 - NaN differs from itself
    return sum(found) / len(found) if found else math.nan
