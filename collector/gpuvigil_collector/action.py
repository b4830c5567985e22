"""The nouns of repair: evidence, proposal, verdict, action, and what an actuator must do.

safety.py judges each Proposal against a FleetState, execute.py alone carries out, through an Actuator, what
was allowed. Nothing here has an effect. Times are ns, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from .agent_call import AgentCall as AgentCall  # noqa: PLC0414 - one of the nouns
from .agent_call import Answer as Answer  # noqa: PLC0414 - the same
from .safety_limits import Limits as Limits  # noqa: PLC0414 - the same

Mode = Literal["observe", "recommend", "act"]
Kind = Literal[
    "notify",  # tell people; changes nothing
    "capture_evidence",  # read and keep; changes nothing
    "checkpoint",  # ask the job to save
    "hold",  # the node takes no new work: Slurm drain, Kubernetes cordon and taint, a plain host's hold
    "stop_job",  # end a job's processes on a node
    "move_job",  # start a job elsewhere, or again: requeue, evict its gang, restart
    "reset_gpu",
    "reboot",
    "validate",  # test under load; the node must be held
    "release",  # take back a hold of ours
    "hand_over",  # a person decides; changes nothing
]
HARMLESS: Final = frozenset({"notify", "capture_evidence", "hand_over"})
INTERRUPTS: Final = frozenset({"stop_job", "move_job", "reset_gpu", "reboot"})  # these end running work
NEEDS_HOLD: Final = frozenset({"validate", "release", "reset_gpu", "reboot"})
"""Kinds only for a node that we hold: else new work could start in the midst of it."""
ON_JOB: Final = frozenset({"checkpoint", "stop_job", "move_job"})  # `node` then names where the fault is

TrustOrigin = Literal["driver", "host", "fabric", "scheduler", "peers", "job", "agent", "statistics"]
"""Whose word it is. The driver's events and the kernel log are one origin; all that a job says is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One piece of evidence. fatal: of a row that the catalogue lists as fatal by itself."""

    origin: TrustOrigin
    rule: str
    start_ns: int
    fatal: bool = False
    synthetic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One step of a playbook that asks to be allowed. id is the action's: one a case, step and attempt.

    node is always one node's full name. gpu: a UUID, with reset_gpu alone. job: with a kind of ON_JOB.
    gpus: how many GPUs it interrupts or takes out of service. approved_by: who approved it, "" for nobody.
    """

    id: str
    case: str
    incident: str
    fault_class: str
    playbook: str
    step: int
    kind: Kind
    node: str
    reason: str
    gpu: str = ""
    job: str = ""
    gpus: int = 0
    deadline_s: float = 60.0
    evidence: tuple[Signal, ...] = ()
    synthetic: bool = False
    approved_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One registered node as the kernel sees it.

    domain: failure domain (rack, switch, NVLink domain), "" where none is known: then all such nodes are one.
    silent: its agent says nothing. dead: a second path agrees that the node is gone. maintenance: whose and
    why, "" for none. hold: who keeps new work off it. remediator: another system that repairs this node.
    protected: why it is never touched (opt-out label, control plane, the collector's host), "" for no reason.
    gpu_uuids: the GPUs that it has; one that is not among them is never reset.
    """

    node: str
    gpus: int
    partition: str = ""
    domain: str = ""
    silent: bool = False
    dead: bool = False
    maintenance: str = ""
    hold: Literal["none", "ours", "foreign"] = "none"
    held_why: str = ""
    remediator: str = ""
    protected: str = ""
    jobs: tuple[str, ...] = ()
    gpu_uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One job. gpus: all its GPUs. checkpoint: of the newest request since the incident began.

    refusals: why its owner or its kind forbids to stop it: interactive, no_requeue, array, het, bare_pod,
    disruption_budget, restart_budget, not_opted_in, other_users (a shared node). processes: the name that its
    processes give themselves, by which they are asked, where that is another.
    """

    job: str
    nodes: tuple[str, ...]
    gpus: int
    dead: bool = False
    checkpoint: Literal["none", "pending", "saved", "impossible"] = "none"
    refusals: tuple[str, ...] = ()
    processes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An action that had, or may have had, an effect. open: it holds still (a node that we hold).

    at_ns: the latest time at which it may have happened, not its verdict's: windows are counted from it.
    case: its proposal's; "" makes it a case of its own. jobs: the running jobs that it ended, as its verdict
    said; None where that is not known: then one is counted for each that had GPUs.
    """

    id: str
    kind: Kind
    node: str
    domain: str
    partition: str
    job: str
    gpus: int
    at_ns: int
    open: bool = False
    case: str = ""
    jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The right to act: generation (from 1) grows with each new holder; after until_ns it is nobody's.

    until_ns is now plus what the monotonic clock says is left: no jump of the wall clock may lengthen it.
    lease_s: how long a renewal lasts at most; half of it must be left when an action is allowed.
    """

    holder: str
    generation: int
    until_ns: int
    lease_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """All that the kernel may know. None means unknown, and unknown denies.

    nodes: the registered inventory, silent nodes included: the denominator of every share. paused: who and
    why, "" when not. actionable: (node, ns) of every fault that asked for an action, newest window at least.
    breaker_ns: when the storm breaker tripped, 0 when it is closed; a person closes it. others: another
    remediator seen on the fleet whose nodes are not split from ours by label, "" for none. jumped_ns: how
    far the wall clock leapt forward within the last day, by the monotonic clock: windows are so much longer.
    """

    mode: Mode | None
    partition_modes: Mapping[str, Mode] = field(default_factory=dict)
    paused: str | None = None
    nodes: Mapping[str, NodeState] | None = None
    jobs: Mapping[str, JobState] | None = None
    past: tuple[Past, ...] | None = None
    actionable: tuple[tuple[str, int], ...] | None = None
    breaker_ns: int | None = None
    others: str | None = None
    fence: Fence | None = None
    limits: Limits = field(default_factory=Limits)
    jumped_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What one gate said, with the numbers that it compared."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The kernel's word on one proposal. gate: the first that denies, "" when all pass.

    effect: what the mode makes of an allowed proposal: none (observe: only said), recommend (a person
    approves first) or act. It is no part of the decision: gates and numbers are the same in every mode.
    needs_approval: a person must approve even in act. interrupts: the running jobs that it ends (Past.jobs).
    """

    allowed: bool
    gate: str
    gates: tuple[Gate, ...]
    effect: Literal["none", "recommend", "act"]
    needs_approval: bool = False
    trips_breaker: bool = False
    interrupts: tuple[str, ...] = ()


ActionState = Literal[
    "proposed",  # waits for a verdict
    "awaiting",  # allowed, waits for a person
    "denied",
    "would",  # allowed, and the mode is observe: nothing is done
    "intended",  # written down before the effect
    "issued",  # handed to the actuator
    "ambiguous",  # it may have happened: only looking can tell
    "done",
    "failed",  # it did not happen, for certain
    "expired",
    "rejected",
]
ENDED: Final[frozenset[ActionState]] = frozenset({"denied", "would", "done", "failed", "expired", "rejected"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A proposal and what became of it. outcome: for people. answered: the actuator has taken it."""

    proposal: Proposal
    state: ActionState
    attempt: int = 1
    generation: int = 0
    before: str = ""  # a look's token before the effect: boot id, restarts
    outcome: str = ""
    decided_ns: int = 0
    changed_ns: int = 0
    issued_ns: int = 0
    answered: bool = False
    actuator: str = ""
    domain: str = ""
    partition: str = ""
    interrupts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is so now, as far as an action goes.

    absent: its effect is not there. done: it is, and it is ours. foreign: somebody else's mark or change
    stands in its place. unknown: nobody can tell now (unreachable, nonsense). failed: it
    was begun, has ended, and will not come about. token: what tells before from
    after.
    """

    state: Literal["absent", "done", "foreign", "unknown", "failed"]
    detail: str = ""
    token: str = ""
    partly: bool = False  # of an absent one: a part of it is there, so it has arrived


class RefusedError(Exception):
    """The effect was refused and has not happened, for certain; the text says why."""


class AmbiguousError(Exception):
    """It is not known whether the effect happened: a time-out, a lost answer."""


class Actuator(Protocol):
    """One way to have an effect. Called from the executor's thread alone, each call with its own deadline.

    The executor looks before each `apply` and after each that was ambiguous; `apply` is called once an
    attempt and never to find something out.
    """

    name: str
    kinds: frozenset[Kind]

    def look(self, action: Action) -> Look:
        """Say whether the action's effect is in place; changes nothing. Never raises: unknown instead."""
        ...

    def apply(self, action: Action, fence: Fence) -> str:
        """Have the effect, once, marked as ours with incident and generation; return a sentence for people.

        Raises RefusedError or AmbiguousError, nothing else. Already in place and ours: a success.
        Refuses what is foreign.
        """
        ...
