"""The supervisor's hold for the battery of the actuators: the agent's own command desk, without the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpuvigil_agent.config import AgentConfig, HelperLink
from gpuvigil_agent.hook_peer import Refused
from gpuvigil_agent.node_commands import NodeCommands
from gpuvigil_collector.action import AmbiguousError, Answer, Kind
from gpuvigil_collector.actuators.supervisor import SupervisorActuator

_LOOKS = ("boot", "supervise_look")


class AgentHold:
    """One agent that answers to every node's name; its holds are one file."""

    kind: Kind = "hold"

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hold.json"
        config = AgentConfig(
            state_directory=str(folder), helper=HelperLink(pause_files=(str(folder / "pause"),))
        )
        self.node = NodeCommands(config, lambda _go: True)
        self.asked, self.losing, self.broken = 0, False, False
        self.actuator = SupervisorActuator(self._call, {})

    def effects(self) -> list[tuple[str, int]]:
        """Our holds, as they stand in the file."""
        return [
            (h["action"], h["generation"]) for h in self._holds() if h.get("by", "gpuvigil") == "gpuvigil"
        ]

    def contacts(self) -> int:
        """How often the agent was asked for an effect."""
        return self.asked

    def take(self, node: str) -> None:
        """A person holds it by hand."""
        hold = {"incident": "swap NIC", "by": "somebody", "reason": node}
        self.file.write_text(json.dumps({"holds": [hold], "generation": 0}))

    def taken_untouched(self, node: str) -> bool:
        """Tell whether his hold stands as he left it."""
        return self._holds() == [{"incident": "swap NIC", "by": "somebody", "reason": node}]

    def lose_answer(self) -> None:
        """The next effect happens and nobody hears of it."""
        self.losing = True

    def break_down(self) -> None:
        """Nonsense from now on."""
        self.broken = True

    def _holds(self) -> list[dict]:
        return json.loads(self.file.read_text())["holds"] if self.file.exists() else []

    def _call(self, _node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        self.asked += verb not in _LOOKS
        if self.broken:
            return Answer(accepted=True, outcome="<html>")
        try:
            said = self.node.do(verb, dict(arguments), time.time_ns() + int(deadline_s * 1e9))
        except Refused as error:
            return Answer(accepted=False, outcome=str(error))
        if self.losing and verb not in _LOOKS:
            self.losing = False
            raise AmbiguousError("no answer")
        return Answer(accepted=True, outcome=said)


@contextmanager
def agent_hold(directory: Path) -> Iterator[AgentHold]:
    """The supervisor's hold on an agent of its own."""
    yield AgentHold(directory)
