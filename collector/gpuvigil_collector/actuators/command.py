"""Programs of the operator's: one has the effect, one looks. Arguments are fixed, names are checked.

The fence goes along in the environment: GPUVIGIL_GENERATION, GPUVIGIL_UNTIL_NS, and GPUVIGIL_ACTION,
GPUVIGIL_KIND, GPUVIGIL_BEFORE. A program that keeps the highest generation it has seen, and refuses lower
ones, closes the gap between our last look at the clock and its first effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from gpuvigil_collector import process
from gpuvigil_collector.action import Action, AmbiguousError, Fence, Kind, Look, RefusedError
from gpuvigil_collector.actuator_config import PLACEHOLDERS, Command
from gpuvigil_collector.actuators.tools import Tools, names

_LOOK_S: Final = 10.0
_FOREIGN: Final = 2
_SAID: Final = {0: Look(state="done"), 1: Look(state="absent"), _FOREIGN: Look(state="foreign")}


class CommandActuator:
    """One row of the operator's `[[actuators.command]]`."""

    def __init__(self, settings: Command, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.name = f"command {settings.name}"
        self.kinds: frozenset[Kind] = frozenset(settings.kinds)
        self._settings, self._now_ns = settings, now_ns

    def look(self, action: Action) -> Look:
        """Ask the look program; what is not one of its three answers is unknown."""
        try:
            argv = _argv(self._settings.look, action)
            ran = process.run(argv, deadline_s=_LOOK_S, environment=_told(action))
        except (RefusedError, AmbiguousError) as error:
            return Look(state="unknown", detail=str(error))
        token = ran.output.split("\n")[0].strip()[:200]
        said = _SAID.get(ran.code, Look(state="unknown"))
        return replace(said, detail=ran.why(), token=token if token.isprintable() else "")

    def apply(self, action: Action, fence: Fence) -> str:
        """Run the apply program. Raises RefusedError or AmbiguousError."""
        argv = _argv(self._settings.apply, action)
        deadline_s = process.within(fence, action.proposal.deadline_s, self._now_ns())
        told = _told(action) | {
            "GPUVIGIL_GENERATION": str(fence.generation),
            "GPUVIGIL_UNTIL_NS": str(fence.until_ns),
        }
        ran = process.run(argv, deadline_s=deadline_s, environment=told)
        if ran.code == _FOREIGN:
            raise RefusedError(f"{self.name} refused: {ran.why()}")
        if ran.code != 0:
            raise AmbiguousError(f"{self.name} ended with status {ran.code}: {ran.why()}")
        return f"{self.name}: {ran.why()}"


def make(tools: Tools) -> Iterator[CommandActuator]:
    """One for each that the operator configured."""
    return (CommandActuator(row, tools.now_ns) for row in tools.settings.command)


def _argv(template: tuple[str, ...], action: Action) -> list[str]:
    """Put the checked names in. Raises RefusedError where the action has no such name."""
    known = names(action)
    argv = [known[word[1:-1]] if word in PLACEHOLDERS else word for word in template]
    if "" in argv:
        raise RefusedError(f"{template[argv.index('')]}: the action has none")
    return argv


def _told(action: Action) -> dict[str, str]:
    return {
        "GPUVIGIL_ACTION": names(action)["id"],
        "GPUVIGIL_KIND": action.proposal.kind,
        "GPUVIGIL_BEFORE": action.before.replace("\0", ""),
    }
