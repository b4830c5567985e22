"""One change sent to Slurm: how long it may last, and what its answer means."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Self

from gpuvigil_collector.action import AmbiguousError, RefusedError
from gpuvigil_collector.slurm.client import SlurmClient

REFUSALS: Final = (
    "Invalid job id specified",
    "Invalid node name specified",
    "Invalid node state specified",
    "Access/permission denied",
    "Requested operation is presently disabled",
    "Job/step already completing or completed",
    "Job is no longer pending execution",
    "Requested partition configuration not available now",
)
"""slurmctld's own words for "no". All else, a time-out above all, leaves open whether it happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The time that one `apply` has, looks included."""

    until: float

    @classmethod
    def of(cls, seconds: float) -> Self:
        """Begin now."""
        return cls(until=time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds left; 0 when it is over."""
        return max(0.0, self.until - time.monotonic())


def send(client: SlurmClient, turn: Turn, *argv: str) -> None:
    """Have one effect. Raises RefusedError (it has not happened) or AmbiguousError (it may have)."""
    ran = client.run(client.command(argv), deadline_s=turn.left_s(), environment=client.environment)
    if ran.code == 0:
        return
    refused = ran.code > 0 and any(word in ran.errors for word in REFUSALS)
    raise (RefusedError if refused else AmbiguousError)(f"{argv[0]}: {ran.why()}")
