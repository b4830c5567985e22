"""What an actuator keeps up between actions, and for which nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gpuvigil_collector.action import Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldNode:
    """A node that a hold of ours keeps out of work. action: the id of that hold.

    refuses: the node itself shall refuse work: the mode is act. reachable: its agent is connected.
    """

    node: str
    action: str
    reason: str
    refuses: bool = True
    reachable: bool = True


@runtime_checkable
class Tended(Protocol):
    """An actuator that keeps something up between actions."""

    name: str

    def tend(self, fence: Fence) -> None:
        """Do what is due; called every few seconds while the lease is ours, in a thread of its own."""
        ...
