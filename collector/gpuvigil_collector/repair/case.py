"""Case: one playbook on its way for one incident, step by step; all of it survives a restart."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from gpuvigil_collector.action import Kind, Signal

TRAIL_MAX: Final = 200
_JOB_SHOWN: Final = 128
_UNCOUNTED: Final = 1000
Outcome = Literal[
    "",  # under way
    "observed",  # allowed, and the mode is observe: what would have been done is in the journal
    "returned",  # the node is proven well and takes work again
    "mended",  # all steps were done; nothing was held
    "cleared",  # the fault went before anything was done
    "handed_over",  # a person decides
    "rejected",  # a person said no
]


class Mark(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One thing that happened to a case."""

    time_ns: int
    step: str
    what: str


class Case(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Mutable, of the brain's thread alone. step: index in the playbook. Times are ns.

    taken: steps begun before this one, of every playbook that the case has followed: never counted back.
    held: the node carries a hold of this case; hold, held_ns: that action's id and end. held_seen: the
    scheduler has said that the hold is ours. jobs: those that ran there when it began, with the checkpoint
    that each gave. action: id of the action under way, "" for none. waits: what for, for people.
    clean_until_ns: end of the clean wait after a test that passed. proven_ns: when that test was begun.
    """

    id: str
    incident: str
    fingerprint: str
    fault_class: str
    node: str
    target: str
    cause: str
    playbook: str
    opened_ns: int
    gpu: str = ""
    gpu_index: int = -1
    partition: str = ""
    synthetic: bool = False
    step: int = 0
    taken: int = -1
    step_began_ns: int = 0
    attempt: int = 0
    held: bool = False
    hold: str = ""
    held_ns: int = 0
    held_seen: bool = False
    jobs: dict[str, Literal["none", "pending", "saved", "impossible"]] = msgspec.field(default_factory=dict)
    moved: list[str] = msgspec.field(default_factory=list)
    moving: str = ""
    action: str = ""
    waits: str = ""
    denied_by: str = ""
    asked_ns: int = 0
    clean_until_ns: int = 0
    proven_ns: int = 0
    evidence: list[Signal] = msgspec.field(default_factory=list)
    outcome: Outcome = ""
    ended_ns: int = 0
    trail: list[Mark] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.taken < 0:  # written by a collector that did not count yet: past all that it may have used
            self.taken = _UNCOUNTED + self.step

    @property
    def ended(self) -> bool:
        """Whether nothing more is done."""
        return bool(self.outcome)

    def note(self, now_ns: int, step: str, what: str) -> None:
        """Add to the trail; the oldest go first when it is long."""
        self.trail = [*self.trail, Mark(time_ns=now_ns, step=step, what=what[:500])][-TRAIL_MAX:]

    def next_step(self) -> None:
        """Go on to the step that follows; its time begins when it is first tried, not while nobody could."""
        self.step += 1
        self.taken += 1
        self.step_began_ns = self.attempt = 0
        self.action = self.waits = self.denied_by = ""
        self.asked_ns = self.clean_until_ns = 0

    def end(self, outcome: Outcome, now_ns: int) -> None:
        """Close the case."""
        self.outcome, self.ended_ns, self.waits, self.action = outcome, now_ns, "", ""

    def action_id(self, kind: Kind, job: str = "") -> str:
        """Name the action of this step and attempt, as no other ever; of one job where a step has several.

        It becomes part of addresses, so a scheduler's job loses its slashes; one with a long name is cut.
        """
        word = job.replace("/", ":")
        if len(word) > _JOB_SHOWN:
            word = f"{word[:_JOB_SHOWN]}-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
        return f"{self.id}-{self.taken}-{self.attempt}-{kind}" + (f"-{word}" if job else "")
