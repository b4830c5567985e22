"""The nouns of detection: Window in, Scores out, Findings after the decision.

A detector is a pure function of a Window (or of Features) plus its own learned state. It knows no clock,
no I/O, no config file and no logger, and it is vectorised over all series of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Scores = Float32
"""float32 [series, fresh]: larger is odder; NaN is no opinion (warm-up, missing), never 0."""

Severity = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The newest T seconds of one peer group.

    metrics: M metric names. entities: S full names, `<node>/<entity>` (`n1/gpu:GPU-5d1b`, `n1/node`).
    time_ns: int64 [T], the collector's 1 s grid, oldest first. values: float32 [M, S, T], NaN = missing.
    learnable: bool [S, T], False where a sample must not be learned from (alarm, maintenance).
    """

    metrics: tuple[str, ...]
    entities: tuple[str, ...]
    time_ns: Int64
    values: Float32
    learnable: Bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Numbers a person can check: what was seen, what was expected, in which unit, since when."""

    observed: float | None = None
    expected: float | None = None
    peers_median: float | None = None
    unit: str = ""
    since_ns: int = 0
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One detector's claim about one entity of one node.

    entity is the full name `<node>/<entity>`. fault_class is a word of fault_classes.py. sentence explains
    it with numbers. score and p_value are None for facts (rules, structural). notify is False for findings
    that are recorded but must not open an incident (info, learning, application faults).
    """

    detector: str
    rule: str
    entity: str
    fault_class: str
    severity: Severity
    start_ns: int
    end_ns: int
    sentence: str
    metric: str = ""
    score: float | None = None
    p_value: float | None = None
    origin: str = "statistics"
    evidence: Evidence = field(default_factory=Evidence)
    notify: bool = True
    synthetic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FactEvent:
    """One event of one node, in the collector's time. kind: xid, sxid, kernel, gpu_lost, gpu_returned,
    driver_stuck, driver_recovered, driver_crashed, recovery_action, agent, hook, rank_up, rank_down,
    collectives; proven: the collector's own, of a node that passed a test begun at time_ns. entity is the
    local name (`gpu:GPU-5d1b`, `node`). origin: driver, kernel_log, agent, job. time_ns is when it
    happened, hours ago where a backlog brings it: it is judged at its own time.
    boot_id is the sender's, empty when unknown. judged is True for an event that a brain before this one
    has judged: it is here again, at its own time, so that memory is rebuilt; it is no news.
    """

    node: str
    time_ns: int
    kind: str
    origin: str
    entity: str
    code: int = 0
    text: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    synthetic: bool = False
    boot_id: str = ""
    judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """Steps of one rank's training loop, oldest first, each once.

    entity is the local name, `rank:<job>/<rank>`. metrics: M catalogue names. end_ns: int64 [n], when each
    step ended, in the collector's time. values: float32 [n, M], NaN = absent.
    """

    node: str
    entity: str
    metrics: tuple[str, ...]
    end_ns: Int64
    values: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFact:
    """One GPU of a node's inventory. seen is False when the node had it and it is gone."""

    uuid: str
    index: int
    model: str
    pci_bus_id: str
    seen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFact:
    """What the collector knows of one registered node. Times are nanoseconds of the collector's clock."""

    node: str
    boot_id: str
    connected: bool
    first_seen_ns: int
    last_seen_ns: int
    clock_offset_ns: int
    agent_version: str
    gpu_source: str
    note: str
    driver_version: str
    gpus: tuple[GpuFact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The newest value of one metric for every series: values, age_s float32 [S] (age inf = never)."""

    metric: str
    entities: tuple[str, ...]
    values: Float32
    age_s: Float32


class Snapshot(Protocol):
    """One tick's view of the fleet, the same for every detector."""

    now_ns: int
    events: tuple[FactEvent, ...]
    steps: tuple[StepRows, ...]
    nodes: dict[str, NodeFact]

    def window(self, metric: str, seconds: int) -> Window:
        """The newest `seconds` columns of one metric over the fleet; slow series are NaN between readings."""
        ...

    def latest(self, metric: str) -> Latest:
        """The newest value of one metric for every series of the fleet, with its age."""
        ...


class FactDetector(Protocol):
    """A stage that returns every finding that holds now (level-triggered: what stops coming has cleared)."""

    name: str

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Judge one snapshot; called once a tick, and at once when events came."""
        ...


class Detector(Protocol):
    """A statistical scorer with explicit learned state; decide.py turns its scores into findings."""

    name: str

    def learn(self, window: Window) -> None:
        """Update the learned state from the learnable columns of `window`."""
        ...

    def score(self, window: Window, fresh: int) -> Scores:
        """Score the newest `fresh` columns: float32 [S, fresh]."""
        ...
