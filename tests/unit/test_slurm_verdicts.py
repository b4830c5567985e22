"""Who keeps the verdicts of held nodes: when one is given, renewed, taken back, and when nothing is done."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from unit.safety_world import ask

from gpuvigil_collector.action import Action, AmbiguousError, Answer, Fence, RefusedError
from gpuvigil_collector.actuators import slurm_verdicts
from gpuvigil_collector.actuators.slurm import SlurmActuator
from gpuvigil_collector.actuators.slurm_verdicts import LASTS_S, Verdicts
from gpuvigil_collector.actuators.tools import Tools
from gpuvigil_collector.slurm.client import UnknownError
from gpuvigil_collector.slurm.records import NodeRecord
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.tended import HeldNode
from gpuvigil_protos.settings import ConfigError

FENCE = Fence(holder="c1", generation=3, until_ns=1 << 62)
OURS = "gpuvigil: gpu_lost gpu3 fell off the bus [i1 g3]"
HELD = HeldNode(node="gn1", action="c1-2-0-hold", reason="gpuvigil: gpu_lost [i1]")
BOOT = "0e1d2c3b-0000-4000-8000-000000000001"


@dataclass
class World:
    """An agent that puts what it is given, a Slurm that says what the test wants, a clock."""

    now: float = 1_800_000_000.0
    held: list[HeldNode] | None = field(default_factory=lambda: [HELD])
    reason: str = OURS
    answers: Answer | Exception = field(default_factory=lambda: Answer(accepted=True, outcome="put"))
    boot: str = json.dumps({"boot_id": BOOT})
    unknown: bool = False
    slow_s: float = 0.0
    held_then: list[HeldNode] | None = None
    asked: list[Mapping[str, str]] = field(default_factory=list)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.keeper = Verdicts(
            settings=SlurmSettings(verdict_key="/key"), client=self, call=self.call,  # type: ignore[arg-type]
            held=self._held, sign=self.key.sign, now_s=lambda: self.now,
        )  # fmt: skip

    def _held(self) -> list[HeldNode] | None:
        """What is held; from the second time that a round asks on `held_then`, where there is one."""
        found, self.held = self.held, self.held if self.held_then is None else self.held_then
        return found

    def call(self, node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        assert deadline_s == 5.0
        self.now += self.slow_s
        if verb == "boot":
            return Answer(accepted=True, outcome=self.boot)
        assert verb == "verdict"
        self.asked.append(arguments)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def nodes(self, deadline_s: float) -> list[NodeRecord]:
        if self.unknown:
            raise UnknownError("slurmctld does not answer")
        names = {one.node for one in self.held or []} | {"gn1"}
        return [self._record(name) for name in sorted(names)]

    def _record(self, name: str) -> NodeRecord:
        return NodeRecord(
            name=name, hostname=name, address="", partitions=["gpu"], gres="", reason=self.reason,
            reason_changed_at=0, reason_set_by_user="root", state="idle",
            state_flags=["DRAIN"] if self.reason else [],
        )  # fmt: skip

    def turn(self, seconds: float = 5, times: int = 1) -> list[str]:
        """What the agent was told meanwhile: "put" or "none"."""
        before = len(self.asked)
        for _ in range(times):
            self.now += seconds
            self.keeper.tend(FENCE)
        return ["put" if one["text"] else "none" for one in self.asked[before:]]


def test_a_held_node_has_a_signed_verdict_that_is_renewed_before_it_lapses() -> None:
    world = World()
    assert world.turn() == ["put"]
    [given] = world.asked
    text = given["text"].encode()
    world.key.public_key().verify(bytes.fromhex(given["signature"]), text)
    assert text.decode().splitlines() == [
        "gpuvigil-verdict 1", "node gn1", f"boot {BOOT}", "at prolog", "action c1-2-0-hold",
        f"expires {int(world.now) + LASTS_S}", "reason gpuvigil: gpu_lost [i1]",
    ]  # fmt: skip
    assert given["generation"] == "3"
    assert world.turn(times=50) == []
    assert world.turn(times=12) == ["put"], "long before its end"
    with pytest.raises(InvalidSignature):
        world.key.public_key().verify(bytes.fromhex(given["signature"]), text + b"x")


@pytest.mark.parametrize("reason", ["", "bad fan (root)", "gpuvigil: looks like ours"])
def test_a_node_that_is_not_drained_by_us_gets_none_and_loses_what_it_has(reason: str) -> None:
    world = World(reason=reason)
    assert world.turn(times=3) == ["none"], "it may have one of an earlier run: taken once"
    world = World()
    assert world.turn() == ["put"]
    world.reason = reason
    assert world.turn(times=3) == ["none"], "once it is taken, no more"


def test_a_node_where_the_mode_is_not_act_gets_none_and_loses_what_it_has() -> None:
    world = World()
    assert world.turn() == ["put"]
    world.held = [replace(HELD, refuses=False)]
    assert world.turn(times=3) == ["none"]
    world.held = [HELD]
    assert world.turn() == ["put"]


def test_an_agent_that_is_away_costs_nothing() -> None:
    world = World(held=[replace(HELD, reachable=False)])
    assert world.turn(times=20) == []


def test_agents_that_do_not_answer_end_the_round_in_time() -> None:
    """Forty of them: what is held and who has paused is looked at anew before all have been waited for."""
    world = World(answers=AmbiguousError("no answer"))
    world.held = [replace(HELD, node=f"gn{number}") for number in range(40)]
    world.slow_s = 5.0
    world.keeper.tend(FENCE)
    assert len(world.asked) <= 3


def test_what_is_no_longer_held_is_given_none_in_the_middle_of_a_round() -> None:
    world = World()
    world.held_then = []
    assert world.turn() == []


def test_nothing_is_done_where_what_holds_is_not_known() -> None:
    """Paused, or Slurm silent: neither given nor renewed nor taken; what is there lapses by itself."""
    world = World()
    assert world.turn() == ["put"]
    world.held = None
    assert world.turn(seconds=600, times=3) == []
    world.held, world.unknown = [HELD], True
    assert world.turn(seconds=600, times=3) == []


@pytest.mark.parametrize(
    "answers",
    [AmbiguousError("gn1: no answer"), RefusedError("not sent"), Answer(accepted=False, outcome="full")],
)
def test_an_agent_that_does_not_take_it_is_asked_again_in_a_minute_and_one_that_keeps_it_until_it_lapses(
    answers: Answer | Exception,
) -> None:
    world = World(answers=answers)
    assert world.turn(times=12) == ["put"]
    assert world.turn() == ["put"], "a minute later"
    world.held = []
    assert world.turn(times=4) == ["none"] * 4, "it may have come all the same"
    assert world.turn(seconds=LASTS_S, times=2) == [], "no script believes it any more"


def test_a_boot_id_that_is_none_gives_no_verdict() -> None:
    for boot in ("", "[]", '{"boot_id": 7}', '{"boot_id": "a b\\nat health"}'):
        assert World(boot=boot).turn() == []


def test_r12_a_release_takes_it_back_first_and_it_does_not_return() -> None:
    world = World()
    assert world.turn() == ["put"]
    world.keeper.take_back("gn1", FENCE)
    assert [one["text"] for one in world.asked[1:]] == [""]
    assert world.turn(seconds=400, times=3) == [], "the case still says held for a tick or two"
    world.held = [replace(HELD, action="c1-9-0-hold")]
    assert world.turn() == ["put"], "held anew"


def test_r12_a_verdict_that_was_on_its_way_at_the_release_is_taken_until_it_has_lapsed() -> None:
    world = World(answers=AmbiguousError("no answer"))
    assert world.turn() == ["put"]
    world.answers = Answer(accepted=True, outcome="none")
    world.keeper.take_back("gn1", FENCE)
    world.held = []
    assert world.turn(times=4) == ["none"] * 4
    assert world.turn(seconds=LASTS_S, times=2) == []


def test_a_release_that_does_not_come_about_leaves_the_node_its_verdict() -> None:
    world = World()
    world.turn()
    world.keeper.take_back("gn1", FENCE)
    world.keeper.allow("gn1")
    assert world.turn() == ["put"]


class Slurm:
    """The nodes' side of the actuator: in what order things are done."""

    def __init__(self, refuses: bool) -> None:
        self.order: list[str] = []
        self.refuses = refuses

    def take_back(self, node: str, fence: Fence) -> None:
        self.order.append(f"verdict of {node}")

    def allow(self, node: str) -> None:
        self.order.append(f"{node} stays held")

    def in_slurms_words(self, proposal: Any, *_: object) -> Any:
        return proposal

    def apply(self, action: Action, *_: object) -> str:
        self.order.append(action.proposal.kind)
        if self.refuses:
            raise RefusedError("slurmctld says no")
        return "done"


@pytest.mark.parametrize("refuses", [False, True])
def test_r12_the_verdict_goes_before_the_drain(refuses: bool) -> None:
    slurm: Any = Slurm(refuses)
    actuator = SlurmActuator(settings=SlurmSettings(), client=slurm, verdicts=slurm)
    actuator._nodes = slurm
    fence = Fence(holder="c1", generation=3, until_ns=time.time_ns() + 30 * 10**9)
    action = Action(proposal=ask("release", "gn1"), state="issued")
    with pytest.raises(RefusedError) if refuses else contextlib.nullcontext():
        actuator.apply(action, fence)
    assert slurm.order == ["verdict of gn1", "release", *(["gn1 stays held"] if refuses else [])]
    slurm.order.clear()
    with pytest.raises(RefusedError) if refuses else contextlib.nullcontext():
        actuator.apply(Action(proposal=ask("hold", "gn1"), state="issued"), fence)
    assert slurm.order == ["hold"]


@pytest.mark.parametrize("answers", [AmbiguousError("no answer"), Answer(accepted=False, outcome="busy")])
def test_r12_a_node_whose_verdict_may_stand_is_not_released(answers: Answer | Exception) -> None:
    """Its prolog would refuse the first job, and Slurm would drain it for that."""
    world = World()
    world.turn()
    world.answers = answers
    with pytest.raises(RefusedError, match="the verdict of gn1 is not taken back"):
        world.keeper.take_back("gn1", FENCE)


def test_without_a_key_there_is_none_and_a_bad_key_is_said(tmp_path: Path) -> None:
    tools = Tools(agent=World().call)
    client: Any = None
    assert slurm_verdicts.make(tools, SlurmSettings(), client) is None
    for settings, word in (
        (SlurmSettings(verdict_key=str(tmp_path / "no")), "slurm verdict_key: .* cannot be read"),
        (SlurmSettings(verdict_key=__file__), "slurm verdict_key: expected a PEM private key"),
    ):
        with pytest.raises(ConfigError, match=word):
            slurm_verdicts.make(tools, settings, client)
    file = tmp_path / "key.pem"
    key = Ed25519PrivateKey.generate()
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    assert slurm_verdicts.make(tools, SlurmSettings(verdict_key=str(file)), client) is not None


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"verdict_key": "key.pem"}, "verdict_key: expected a full path, got 'key.pem'"),
        ({"verdict_at": ("prolog", "prolog")}, "verdict_at: expected each place once"),
    ],
)
def test_settings_that_make_no_sense_are_said(more: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SlurmSettings(**more).check("slurm")
