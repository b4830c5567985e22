"""One request to a job and what has become of it, and a job's newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["save", "restart"]
State = Literal[
    "asked", "armed", "saved", "failed", "partial", "fenced", "no_space", "unusable", "refused", "deadline",
    "restarting",
]  # fmt: skip
_UNDER_WAY: Final = frozenset({"asked", "armed"})


@dataclass(slots=True, kw_only=True)
class SaveRequest:
    """One request. kind restart ends when every launcher has been asked. by: operator, or an incident's id.

    nodes: what each agent answered, "" while it has not. number orders a job's requests; it is what the ranks
    agree on. told: rank -> its word, while none is final.
    """

    id: str
    number: int
    kind: Kind = "save"
    job: str
    by: str
    asked_ns: int
    deadline_ns: int
    nodes: dict[str, str] = field(default_factory=dict)
    state: State = "asked"
    detail: str = ""
    step: int = -1
    path: str = ""
    size: int = 0
    seconds: float = 0.0
    ended_ns: int = 0
    told: dict[int, State] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in _UNDER_WAY

    def end(self, state: State, now_ns: int, detail: str = "") -> None:
        """Set the final state."""
        self.state, self.ended_ns, self.detail = state, now_ns, detail or self.detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that rank 0 says is whole."""

    step: int
    path: str
    size: int
    seconds: float
    at_ns: int
    request: str
