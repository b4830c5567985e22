"""The node's actuators: whatever an agent says, a look is a Look and an apply raises its two errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.helper_world import GPU, write_keys

from gpuvigil_collector.action import (
    Action,
    AmbiguousError,
    Answer,
    Fence,
    Kind,
    Look,
    Proposal,
    RefusedError,
)
from gpuvigil_collector.actuators.helper import HelperActuator, Signer
from gpuvigil_collector.actuators.supervisor import SupervisorActuator
from gpuvigil_protos import order as orders
from gpuvigil_protos.settings import ConfigError

FENCE = Fence(holder="test", generation=3, until_ns=1 << 62)
KINDS: list[tuple[str, Kind]] = [
    *(("helper", kind) for kind in ("reset_gpu", "reboot", "stop_job")),
    *(("supervisor", kind) for kind in ("hold", "release", "stop_job", "move_job")),
]


class Agents:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []

    def __call__(self, node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        self.asked.append((node, verb, arguments))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    folder = tmp_path_factory.mktemp("key")
    write_keys(folder)
    return Signer(folder / "collector.key")


def made(name: str, agents: Agents, signer: Signer) -> HelperActuator | SupervisorActuator:
    if name == "helper":
        return HelperActuator(agents, signer)
    return SupervisorActuator(agents, {"train": ("n1", "n2")})


def action(kind: Kind, before: str = "", **more: str) -> Action:
    job = "train" if kind in ("stop_job", "move_job") else ""
    values = {"node": "n1", "gpu": GPU if kind == "reset_gpu" else "", "job": job, "incident": "i-1"} | more
    proposal = Proposal(
        id="c:1:1", case="c", fault_class="f", playbook="p", step=1, kind=kind, reason="r", **values
    )
    return Action(proposal=proposal, state="intended", before=before)


ANSWERS = st.one_of(
    st.text(max_size=60),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
        inner, max_size=3) | st.dictionaries(st.sampled_from(
            ["boot_id", "helper", "effect", "state", "outcome", "held", "paused", "ours", "action", "by"]),
        inner, max_size=6), max_leaves=12).map(json.dumps),
)  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(accepted=st.booleans(), text=ANSWERS)
def test_nonsense_of_an_agent_is_unknown_and_never_a_traceback(
    signer: Signer, name: str, kind: Kind, accepted: bool, text: str
) -> None:
    actuator = made(name, Agents(Answer(accepted=accepted, outcome=text)), signer)
    assert isinstance(actuator.look(action(kind)), Look)
    with contextlib.suppress(RefusedError, AmbiguousError):
        actuator.apply(action(kind), FENCE)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("error", [RefusedError("not connected"), AmbiguousError("no answer")])
def test_an_agent_that_does_not_answer_is_unknown(
    signer: Signer, name: str, kind: Kind, error: Exception
) -> None:
    actuator = made(name, Agents(error), signer)
    assert actuator.look(action(kind)).state == "unknown"
    with pytest.raises((RefusedError, AmbiguousError)):
        actuator.apply(action(kind), FENCE)


def seen(effect: str, boot_id: str = "b1", unit: str = "") -> Agents:
    helper = {"boot_id": boot_id, "effect": effect, "detail": "", "unit": unit}
    return Agents(Answer(accepted=True, outcome=json.dumps({"boot_id": boot_id, "helper": helper})))


@pytest.mark.parametrize(("kind", "effect", "unit", "before", "state"), [
    ("reset_gpu", "none", "", "", "absent"), ("reset_gpu", "failed", "", "", "absent"),
    ("reset_gpu", "done", "", "", "done"), ("reset_gpu", "unknown", "", "", "unknown"),
    ("reset_gpu", "intended", "", "", "unknown"), ("reset_gpu", "none", "", "b0", "absent"),
    ("reboot", "none", "", "b1", "absent"), ("reboot", "none", "", "b0", "foreign"),
    ("reboot", "intended", "", "b1", "unknown"), ("reboot", "done", "", "b0", "done"),
    ("stop_job", "none", "active", "", "absent"), ("stop_job", "none", "inactive", "", "done"),
    ("stop_job", "none", "", "", "unknown"), ("stop_job", "failed", "active", "", "absent"),
])  # fmt: skip
def test_what_the_helper_saw_is_judged(
    signer: Signer, kind: Kind, effect: str, unit: str, before: str, state: str
) -> None:
    look = HelperActuator(seen(effect, unit=unit), signer).look(action(kind, before))
    assert (look.state, look.token) == (state, "b1")


@pytest.mark.parametrize(("state", "raises"), [
    ("done", None), ("intended", None),
    ("refused", RefusedError), ("would", RefusedError), ("failed", RefusedError),
    ("unknown", AmbiguousError), ("?", AmbiguousError),
])  # fmt: skip
def test_the_helpers_word_becomes_an_outcome(
    signer: Signer, state: str, raises: type[Exception] | None
) -> None:
    agents = Agents(Answer(accepted=True, outcome=json.dumps({"state": state, "outcome": "because"})))
    actuator = HelperActuator(agents, signer)
    if raises is None:
        assert actuator.apply(action("reboot"), FENCE) == "because"
    else:
        with pytest.raises(raises, match="because"):
            actuator.apply(action("reboot"), FENCE)


def test_an_order_ends_with_the_right_to_act(signer: Signer) -> None:
    """It expires with the lease; with none left nothing is sent."""
    import time

    agents = Agents(Answer(accepted=True, outcome='{"state": "done", "outcome": "x"}'))
    actuator = HelperActuator(agents, signer)
    fence = Fence(holder="t", generation=3, until_ns=time.time_ns() + 5_000_000_000)
    actuator.apply(action("reboot"), fence)
    order = orders.decode(agents.asked[0][2]["order"].encode())
    assert order.expires_ns <= fence.until_ns and order.generation == 3
    with pytest.raises(RefusedError, match="lease of generation 3 ends"):
        actuator.apply(action("reboot"), Fence(holder="t", generation=3, until_ns=time.time_ns()))
    assert len(agents.asked) == 1
    supervisor = SupervisorActuator(agents, {"train": ("n1",)})
    with pytest.raises(RefusedError, match="lease of generation 3 ends"):
        supervisor.apply(action("hold"), Fence(holder="t", generation=3, until_ns=time.time_ns()))
    assert len(agents.asked) == 1


@pytest.mark.parametrize("changes", [
    {"gpu": "*"}, {"gpu": ""}, {"gpu": "0"}, {"gpu": f"{GPU},{GPU}"}, {"node": ""}, {"node": "*"},
    {"node": "n1 n2"}, {"incident": ""}, {"incident": "a b"},
])  # fmt: skip
def test_no_order_is_signed_for_a_target_that_is_none(signer: Signer, changes: dict[str, str]) -> None:
    agents = Agents(Answer(accepted=True, outcome='{"state": "done", "outcome": "x"}'))
    with pytest.raises(RefusedError, match=r"expected one plain name|no such order"):
        HelperActuator(agents, signer).apply(action("reset_gpu", **changes), FENCE)
    assert agents.asked == []


def test_a_job_that_no_node_supervises_is_refused(signer: Signer) -> None:
    agents = Agents(Answer(accepted=True, outcome="{}"))
    actuator = SupervisorActuator(agents, {})
    with pytest.raises(RefusedError, match="is not one that this site's agents supervise"):
        actuator.apply(action("move_job"), FENCE)
    assert actuator.look(action("move_job")).state == "unknown" and agents.asked == []


def test_numbers_grow_whatever_the_clock_does(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuvigil_collector.actuators import helper

    first = signer.number()
    monkeypatch.setattr(helper.time, "time_ns", lambda: 5)
    assert signer.number() == first + 1


@pytest.mark.parametrize("text", ["", "no PEM", None])
def test_a_key_that_is_none_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "key"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="helper key: "):
        Signer(file)
