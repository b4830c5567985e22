"""Scenario files: which faults a run sets, where and when. The schema is frozen in docs/scenarios.md.

A file is checked as a whole, also the faults of other nodes, so that a mistake shows on every node at once.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuvigil_agent.simulate.fault import Fault
from gpuvigil_agent.simulate.faults import KINDS, DriverHang, NicFlap
from gpuvigil_agent.simulate.job import Job, check_jobs, is_node
from gpuvigil_agent.simulate.loop_faults import LoopFault
from gpuvigil_protos import settings
from gpuvigil_protos.settings import ConfigError

VERSION = 1
_POSITIVE = frozenset(
    {"gone_in", "full_in", "xids", "resistance_factor", "latency_factor", "factor", "times"}
)
_MOST = {"clock_share": 1.0, "generation": 7, "width": 32, "link": 63, "latency_factor": 1e6,
         "factor": 1e3, "times": 1e9, "wait": 1e9,
         "errors_per_second": 1e9, "resistance_factor": 100.0}  # fmt: skip


class _Head(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    version: int
    title: str = ""
    fault: list[Any] = msgspec.field(default_factory=list)
    job: list[Any] = msgspec.field(default_factory=list)


class Scenario(NamedTuple):
    """A checked file: its title, all faults and all jobs, in the file's order."""

    title: str
    faults: tuple[Fault, ...]
    jobs: tuple[Job, ...] = ()


class Placed(NamedTuple):
    """One fault on this node's clock, nanoseconds UTC; end_ns is None when it stays.

    number is its place in the file, from 1: with the kind it names the fault in the truth file.
    """

    number: int
    fault: Fault
    start_ns: int
    end_ns: int | None

    def active(self, now_ns: int) -> bool:
        """Tell whether the fault holds at this instant."""
        return self.start_ns <= now_ns and (self.end_ns is None or now_ns < self.end_ns)

    def elapsed_s(self, now_ns: int) -> float:
        """Seconds for which the fault has held so far; 0 before it, no more after its end."""
        until = now_ns if self.end_ns is None else min(now_ns, self.end_ns)
        return max(0, until - self.start_ns) / 1e9


def load_scenario(path: Path) -> Scenario:
    """Read a file. Raises ConfigError with file, field, what was expected, what came and the nearest word."""
    try:
        return parse_scenario(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def parse_scenario(text: str, origin: str) -> Scenario:
    """Check a scenario's text; `origin` names it in errors. Raises ConfigError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None
    head = settings.convert(raw, _Head, origin)
    if head.version != VERSION:
        raise ConfigError(f"{origin}: version: expected {VERSION}, got {head.version}")
    faults = tuple(_fault(table, f"{origin}: fault {number}") for number, table in enumerate(head.fault, 1))
    jobs = tuple(_job(table, f"{origin}: job {number}") for number, table in enumerate(head.job, 1))
    check_jobs(jobs, origin)
    for number, fault in enumerate(faults, 1):
        if isinstance(fault, LoopFault):
            _check_loop(fault, jobs, f"{origin}: fault {number} ({fault.kind})")
    return Scenario(head.title, faults, jobs)


def _job(table: object, origin: str) -> Job:
    if not isinstance(table, dict):
        raise ConfigError(f"{origin}: expected a table [[job]], got {table!r}")
    return settings.convert(table, Job, origin)


def _check_loop(fault: LoopFault, jobs: tuple[Job, ...], origin: str) -> None:
    """A fault of a loop is one of a job, a rank and a node that the file has. Raises ConfigError."""
    job = next((job for job in jobs if job.name == fault.job), None)
    if job is None:
        known = ", ".join(job.name for job in jobs) or "none"
        raise ConfigError(f"{origin}: job: expected one of the file's ({known}), got {fault.job!r:.140}")
    rank = getattr(fault, "rank", None) or 0
    if rank >= job.world_size:
        raise ConfigError(f"{origin}: rank: expected less than {job.world_size}, got {rank}")
    node = _home(fault, job)
    if fault.node not in ("", node):
        raise ConfigError(
            f"{origin}: node: expected {node!r}, that of rank {rank}, or none, got {fault.node!r}"
        )
    if not job.begin <= fault.at or (job.duration is not None and fault.at >= job.begin + job.duration):
        raise ConfigError(f"{origin}: at: expected a time while job {job.name} runs, got {fault.at}s")


def _fault(table: object, origin: str) -> Fault:
    if not isinstance(table, dict):
        raise ConfigError(f"{origin}: expected a table [[fault]], got {table!r}")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(sorted(KINDS))}"
        raise ConfigError(f"{origin}: kind: expected a fault kind, got {kind!r}; {hint}")
    fault = settings.convert(table, KINDS[kind], f"{origin} ({kind})")
    _check(fault, f"{origin} ({kind})")
    return fault


def _check(fault: Fault, origin: str) -> None:
    for name, value in msgspec.structs.asdict(fault).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{origin}: {name}: expected a finite number, got {value}")
        if name != "duration" and isinstance(value, int | float) and value < 0:
            raise ConfigError(f"{origin}: {name}: expected 0 or more, got {value}")
        if name in _POSITIVE and not value:
            raise ConfigError(f"{origin}: {name}: expected more than nothing, got {value!r}")
        if name in _MOST and value is not None and value > _MOST[name]:
            raise ConfigError(f"{origin}: {name}: expected at most {_MOST[name]}, got {value}")
        if isinstance(value, list) and any(isinstance(item, int) and item < 0 for item in value):
            raise ConfigError(f"{origin}: {name}: expected numbers of 0 or more, got {value}")
    if fault.duration is not None and fault.duration <= 0:
        raise ConfigError(f"{origin}: duration: expected more than 0s, got {fault.duration}s")
    if isinstance(fault, DriverHang) and fault.gpu is not None and fault.call != "readings":
        raise ConfigError(f'{origin}: gpu: expected none beside call = "{fault.call}", got {fault.gpu}')
    if isinstance(fault, NicFlap) and not 0 < fault.down < fault.period:
        raise ConfigError(
            f"{origin}: down: expected between 0s and period {fault.period}s, got {fault.down}s"
        )


def is_for(fault: Fault, node: str) -> bool:
    """Tell whether a fault is this node's: by its name, or by the number that the name ends in."""
    return is_node(fault.node, node)


def _is_here(fault: Fault, jobs: tuple[Job, ...], node: str) -> bool:
    if not isinstance(fault, LoopFault):
        return is_for(fault, node)
    return is_node(_home(fault, next(job for job in jobs if job.name == fault.job)), node)


def _home(fault: LoopFault, job: Job) -> str | int:
    """The node of the rank that a fault is one of, of rank 0 where it is one of the whole job."""
    return job.nodes[job.place_of(getattr(fault, "rank", None) or 0)[0]]


def place(scenario: Scenario, node: str, start_ns: int) -> tuple[Placed, ...]:
    """Put this node's faults on the clock."""
    placed = []
    for number, fault in enumerate(scenario.faults, 1):
        if _is_here(fault, scenario.jobs, node):
            placed.append(put(number, fault, start_ns))
    return tuple(placed)


def put(number: int, fault: Fault, start_ns: int) -> Placed:
    """Put one fault on the clock."""
    begin = start_ns + int(fault.at * 1e9)
    return Placed(number, fault, begin, None if fault.duration is None else begin + int(fault.duration * 1e9))
