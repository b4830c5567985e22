"""A simulated training job, `[[job]]` of a scenario: which nodes, how many ranks, how long a step.

Ranks are numbered node by node in the order of `nodes`; rank r is on slot `first_gpu` + r % `ranks_per_node`.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from gpuvigil_protos.entity import is_valid_job, is_valid_node_name
from gpuvigil_protos.settings import ConfigError, Seconds

RANKS_MAX = 1024
_BIG = 1 << 40


class Job(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One job. begin, duration: when it starts, and how long it trains before it ends by itself.

    step, jitter: a step's usual time and its spread. tokens: of a rank in a step. checkpoint_every: in steps,
    0 is never; checkpoint: how long a save takes. timeout: of a collective, after which its waiters abort.
    """

    name: str
    nodes: Annotated[list[str | int], msgspec.Meta(min_length=1, max_length=RANKS_MAX)]
    ranks_per_node: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8
    first_gpu: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0
    begin: Seconds = Seconds(0)
    duration: Seconds | None = None
    step: Seconds = Seconds(1)
    jitter: Annotated[float, msgspec.Meta(ge=0, le=0.2)] = 0.01
    tokens: Annotated[int, msgspec.Meta(ge=1, le=_BIG)] = 16384
    checkpoint_every: Annotated[int, msgspec.Meta(ge=0, le=_BIG)] = 50
    checkpoint: Seconds = Seconds(2)
    timeout: Seconds = Seconds(600)

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return len(self.nodes) * self.ranks_per_node

    def place_of(self, rank: int) -> tuple[int, int]:
        """Where a rank is: its node's place in `nodes`, and its GPU's slot."""
        node, local = divmod(rank, self.ranks_per_node)
        return node, self.first_gpu + local

    def rank_at(self, node: int, gpu: int) -> int | None:
        """The rank on a node's slot, None where that GPU is not the job's."""
        local = gpu - self.first_gpu
        return node * self.ranks_per_node + local if 0 <= local < self.ranks_per_node else None

    def node_place(self, node: str) -> int | None:
        """The place of a node in `nodes`, None where the job is not on it."""
        return next((at for at, wanted in enumerate(self.nodes) if is_node(wanted, node)), None)

    def node_names(self, own: str) -> tuple[str, ...]:
        """Full names of all nodes, as one of them sees them: numbers are written as in its own name."""
        prefix, digits = own.rstrip("0123456789"), re.search(r"[0-9]+\Z", own)
        width = len(digits[0]) if digits else 0
        return tuple(w if isinstance(w, str) else f"{prefix}{w:0{width}d}" for w in self.nodes)


def is_node(wanted: str | int, node: str) -> bool:
    """Tell whether a node is meant: by its name, or by the number that the name ends in."""
    if isinstance(wanted, str):
        return wanted == node
    digits = re.search(r"[0-9]+\Z", node)
    return digits is not None and int(digits[0]) == wanted


def check_jobs(jobs: tuple[Job, ...], origin: str) -> None:
    """Refuse what cannot be. Raises ConfigError."""
    taken: dict[tuple[str, int], str] = {}
    names: set[str] = set()
    for number, job in enumerate(jobs, 1):
        _check(job, f"{origin}: job {number} ({job.name!r:.140})")
        where = f"{origin}: job {number} ({job.name})"
        if job.name in names:
            raise ConfigError(f"{where}: name: expected one that no other job has")
        names.add(job.name)
        for node in job.nodes:
            for gpu in range(job.first_gpu, job.first_gpu + job.ranks_per_node):
                other = taken.setdefault((str(node), gpu), job.name)
                if other != job.name:
                    raise ConfigError(f"{where}: first_gpu: GPU {gpu} of node {node} is that of job {other}")


def _check(job: Job, where: str) -> None:
    if not is_valid_job(job.name):
        raise ConfigError(f"{where}: name: expected letters, digits and ._:+-, at most 128 of them")
    if len({str(node) for node in job.nodes}) != len(job.nodes):
        raise ConfigError(f"{where}: nodes: expected each node once, got {job.nodes}")
    for node in job.nodes:
        bad = not is_valid_node_name(node) if isinstance(node, str) else not 0 <= node < _BIG
        if bad:
            raise ConfigError(f"{where}: nodes: expected node names or their numbers, got {node!r:.140}")
    if job.world_size > RANKS_MAX:
        raise ConfigError(f"{where}: ranks: expected at most {RANKS_MAX} in all, got {job.world_size}")
    for name, least in (("step", 0.02), ("timeout", 1), ("begin", 0), ("checkpoint", 0)):
        value = getattr(job, name)
        if not least <= value <= _BIG:
            raise ConfigError(f"{where}: {name}: expected at least {least}s, got {value}s")
    if job.duration is not None and not 0 < job.duration <= _BIG:
        raise ConfigError(f"{where}: duration: expected more than 0s, got {job.duration}s")
