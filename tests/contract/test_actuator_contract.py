"""What every actuator promises, over the real thing behind it (actuator_cases.py)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from contract.actuator_cases import CASES, NEEDS
from unit.action_help import World, action

from gpuvigil_collector.action import AmbiguousError, Fence, RefusedError

ROWS = [
    pytest.param(name, marks=getattr(pytest.mark, NEEDS[name]) if name in NEEDS else ()) for name in CASES
]


@pytest.fixture(params=ROWS)
def bench(request, tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    with CASES[request.param](folder) as made:
        yield made


def fence(generation=7, left_s=25.0):
    return Fence(holder="me", generation=generation, until_ns=time.time_ns() + int(left_s * 1e9))


def asked(bench, name="a1", **more):
    return action(name, kind=bench.kind, deadline_s=2.0, **more)


def issued(one):
    return replace(one, state="issued")


def carried_out(bench, tmp_path, *actions, steps=40):
    """Submit the actions to a real executor and let it look until they have ended."""
    world = World(tmp_path / "state", bench.actuator)
    world.executor.resume()
    for one in actions:
        world.executor.submit(one)
    world.step(len(actions))
    for _ in range(steps):
        if all(world.state(one.proposal.id) in ("done", "failed") for one in actions):
            break
        world.step(after_s=0.2)
        time.sleep(0.02)
    return world


def test_the_effect_is_had_marked_as_ours_and_seen(bench):
    one = asked(bench)
    assert bench.actuator.look(one).state == "absent"
    assert bench.effects() == [], "looking changes nothing"
    assert bench.actuator.apply(issued(one), fence())
    assert bench.effects() == [("a1", 7)]
    assert bench.actuator.look(issued(one)).state == "done"
    assert bench.kind in bench.actuator.kinds and bench.actuator.name


def test_already_in_place_and_ours_is_a_success_without_a_second_effect(bench):
    for _ in range(3):
        bench.actuator.apply(issued(asked(bench)), fence())
    assert bench.effects() == [("a1", 7)]


def test_r4_a_lost_answer_is_ambiguous_reconciled_and_never_repeated(bench, tmp_path):
    bench.lose_answer()
    world = carried_out(bench, tmp_path, asked(bench))
    states = [state for _, state in world.told()]
    assert states == ["intended", "issued", "ambiguous", "done"]
    assert bench.effects() == [("a1", 7)]


def test_r6_what_is_foreign_is_refused_and_untouched(bench, tmp_path):
    bench.take("n1")
    assert bench.actuator.look(asked(bench)).state == "foreign"
    with pytest.raises(RefusedError):
        bench.actuator.apply(issued(asked(bench)), fence())
    assert carried_out(bench, tmp_path, asked(bench, "a2")).state("a2") == "failed"
    assert bench.taken_untouched("n1") and bench.effects() == []


def test_r2_a_fence_that_is_over_is_refused_before_anything_is_asked(bench):
    for left_s in (-100.0, 0.0, 0.3):
        with pytest.raises(RefusedError):
            bench.actuator.apply(issued(asked(bench)), fence(left_s=left_s))
    assert bench.contacts() == 0


def test_r2_a_stale_generation_is_refused_where_the_effect_is_had(bench):
    bench.actuator.apply(issued(asked(bench, node="n2")), fence(generation=8))
    with pytest.raises(RefusedError):
        bench.actuator.apply(issued(asked(bench, "a2")), fence(generation=7))
    assert bench.effects() == [("a1", 8)]


def test_r9_in_observe_nothing_is_asked(bench, tmp_path):
    world = carried_out(
        bench, tmp_path, asked(bench, state="would"), asked(bench, "a2", state="denied"), steps=3
    )
    assert [state for _, state in world.told()] == ["would", "denied"]
    assert bench.contacts() == 0 and bench.effects() == []


HOSTILE = [
    "n1\nn2",
    "-n1",
    "--all",
    "n1;reboot",
    "$(reboot)",
    "`reboot`",
    "n*",
    "*",
    "n[1-4]",
    "n1,n2",
    "ALL nodes",
    "",
    "n1\0",
    "../n1",
    "n1'",
    'n"1',
    "n\u202e1",
    "x" * 300,
    "{node}",
    "n1\r\nX-A: b",
    "n|1",
    "n&1",
    "~root",
]


@pytest.mark.parametrize("field", ["node", "incident", "name", "gpu", "job"])
def test_r13_hostile_names_are_refused_before_anything_is_asked(bench, field):
    for hostile in HOSTILE if field in ("node", "incident", "name") else [text for text in HOSTILE if text]:
        one = asked(bench, **{field: hostile})
        with pytest.raises(RefusedError):
            bench.actuator.apply(issued(one), fence())
        assert bench.actuator.look(one).state == "unknown", hostile
    assert bench.contacts() == 0 and bench.effects() == []


def test_what_has_broken_down_raises_one_of_the_two_errors_and_is_unknown(bench, tmp_path):
    bench.break_down()
    assert bench.actuator.look(asked(bench)).state == "unknown"
    with pytest.raises((RefusedError, AmbiguousError)):
        bench.actuator.apply(issued(asked(bench)), fence())
    assert carried_out(bench, tmp_path, asked(bench, "a2")).state("a2") == "failed"
    assert bench.effects() == []
