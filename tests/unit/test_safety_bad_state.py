"""State that is missing, malformed or contradicts itself denies, and nothing raises, whatever comes."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.safety_world import (
    FATAL,
    MINUTE,
    NOW,
    ask,
    changed,
    detail,
    fleet,
    held,
    judge,
    past,
    state,
    with_job,
)

from gpuvigil_collector.action import (
    HARMLESS,
    FleetState,
    JobState,
    Kind,
    Limits,
    NodeState,
    Past,
    Proposal,
    Signal,
)
from gpuvigil_collector.safety import authorise
from gpuvigil_collector.safety_facts import Inventory

KINDS = typing.get_args(Kind)


JUNK_VALUES = (None, ..., -1, 1.5, "\x00", [], (None,), {"n0": None}, {1: 2}, ((1, 2, 3),), True)
BAD_PAST = {"gpus": (-1, True), "at_ns": (0, 1.0), "kind": ("drain",), "open": (1,), "node": (None,),
            "jobs": (["j"], (1,)), "case": (None,), "id": (None,)}  # fmt: skip
BAD_NODE = {"gpus": (-1, None, True), "hold": (None, "mine", []), "silent": (None,), "dead": (0,),
            "maintenance": (None,), "remediator": (None,), "protected": (None,), "jobs": (None,),
            "domain": (None,), "partition": (None,), "node": ("n1",), "gpu_uuids": (["x"],)}  # fmt: skip


def pairs(of):
    """Each field with each of its values."""
    return [(field, value) for field, values in of.items() for value in values]


def bad_limits():
    """Limits of which one is out of range."""
    for field in dataclasses.fields(Limits):
        whole = field.type == "int" or "share" in field.name
        for value in (-1, None, True, "1", float("nan"), 1.5 if whole else float("inf")):
            yield field.name, value
    for name in ("unavailable_max", "storm_nodes", "storm_domains", "silent_nodes"):
        yield name, 0


def broken():
    """Every way in which one thing of a state is missing, old, malformed or contradicts another."""
    of, nodes = with_job(), with_job().nodes
    for field in dataclasses.fields(FleetState):
        for value in JUNK_VALUES:
            yield f"{field.name}={value!r}"[:40], replace(of, **{field.name: value})
    yield "past in the future", replace(of, past=(past("hold", "n5", -1),))
    yield "past twice", replace(of, past=(past(), past()))
    for field, value in pairs(BAD_PAST):
        yield f"past {field}", replace(of, past=(replace(past(ago=2 * MINUTE), **{field: value}),))
    yield "finding in the future", replace(of, actionable=(("n0", NOW + 1),))
    yield "finding on no node", replace(of, actionable=(("n99", NOW - 1),))
    yield "breaker in the future", replace(of, breaker_ns=NOW + 1)
    for field, value in pairs(BAD_NODE):
        for name in ("n0", "n7"):
            bad = replace(nodes[name], **{field: value})
            yield f"{name} {field}", replace(of, nodes=dict(nodes) | {name: bad})
    yield "inventory empty", replace(of, nodes={})
    yield "inventory of others", replace(of, nodes=dict(nodes) | {"n7": "n7"})
    for name, value in bad_limits():
        yield f"limit {name} {value}", replace(of, limits=replace(of.limits, **{name: value}))


def held_too(of):
    """The same with n0 held, where there is one whose hold is known."""
    here = of.nodes.get("n0") if isinstance(of.nodes, dict) else None
    return held(of, "n0") if type(here) is NodeState and here.hold == "none" else of


BROKEN = list(broken())


@pytest.mark.parametrize(
    "of", [each for _, each in BROKEN], ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)]
)
def test_r5_lost_or_bad_state_denies_every_action(of):
    for kind in KINDS:
        verdict = judge(held_too(of), ask(kind))
        if kind not in HARMLESS and kind != "checkpoint":
            assert not verdict.allowed and verdict.effect == "none", kind


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus", -1),
        ("gpus", 9),
        ("gpus", None),
        ("dead", None),
        ("checkpoint", "ok"),
        ("refusals", None),
        ("refusals", "no"),
        ("nodes", None),
        ("nodes", ()),
        ("nodes", ("n0", "n99")),
        ("nodes", ["n0"]),
        ("job", "j2"),
    ],
)
@pytest.mark.parametrize("kind", ["move_job", "stop_job", "reboot", "reset_gpu"])
def test_r5_a_job_that_contradicts_itself_is_not_interrupted(kind, field, value):
    of = held(with_job(), "n0")
    bad = replace(of, jobs={"j1": replace(of.jobs["j1"], **{field: value})})
    assert not judge(bad, ask(kind)).allowed


@pytest.mark.parametrize("kind", ["move_job", "reboot", "reset_gpu", "validate"])
def test_r5_node_and_job_that_do_not_agree_are_not_interrupted(kind):
    assert not judge(changed(held(with_job(), "n0"), "n0", jobs=()), ask(kind)).allowed
    assert not judge(replace(held(with_job(), "n0"), jobs={}), ask(kind)).allowed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", None),
        ("case", ""),
        ("case", None),
        ("gpus", None),
        ("gpus", -1),
        ("gpus", True),
        ("evidence", None),
        ("evidence", [FATAL]),
        ("evidence", ("fatal",)),
        ("evidence", (replace(FATAL, origin="oracle"),)),
        ("evidence", (replace(FATAL, start_ns=NOW + 1),)),
        ("evidence", (replace(FATAL, start_ns=0),)),
        ("evidence", (replace(FATAL, rule=""),)),
        ("evidence", (replace(FATAL, fatal=1),)),
        ("synthetic", None),
        ("synthetic", 0),
        ("evidence", (replace(FATAL, synthetic=None),)),
        ("approved_by", None),
        ("approved_by", True),
        ("gpu", None),
        ("job", None),
    ],
)
def test_r5_a_malformed_proposal_is_refused(field, value):
    verdict = judge(state(), ask(**{field: value}))
    assert not verdict.allowed and verdict.effect == "none"


@pytest.mark.parametrize("now", [None, 0, -1, 1.5, "now", True, NOW - 10 * 365 * 86400 * 10**9])
def test_r5_a_time_that_is_none_denies(now):
    assert not judge(state(), ask(), now).allowed


def test_r5_the_detail_says_which():
    assert "node n7: gpus is malformed" in detail(
        judge(changed(state(), "n7", gpus=-1), ask()), "maintenance"
    )
    assert "limit storm_share is 7" in detail(
        judge(replace(state(), limits=Limits(storm_share=7)), ask()), "budgets"
    )
    assert "in the future" in detail(judge(replace(state(), past=(past(ago=-MINUTE),)), ask()), "budgets")
    assert "'n99', which the inventory" in detail(
        judge(replace(state(), actionable=(("n99", NOW),)), ask()), "storm breaker"
    )


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["n0", "j1", "hold", "act"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["n0", "j1", "x"]), inner)
    ),
    max_leaves=5,
)


def junk(kind, good):
    """One of `kind` in which up to three fields are junk."""
    names = [field.name for field in dataclasses.fields(kind)]
    return st.dictionaries(st.sampled_from(names), JUNK, max_size=3).map(lambda bad: replace(good, **bad))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_r5_nothing_raises_whatever_comes(data):
    of = held(with_job(), "n0")
    nodes = dict(of.nodes) | {"n0": data.draw(junk(NodeState, of.nodes["n0"]))}
    wild = replace(
        of,
        nodes=nodes,
        jobs={"j1": data.draw(junk(JobState, of.jobs["j1"]))},
        past=(data.draw(junk(Past, past())),),
    )
    wild = data.draw(st.just(wild) | junk(FleetState, wild) | JUNK)
    asked = ask(data.draw(st.sampled_from(KINDS)), evidence=(data.draw(junk(Signal, FATAL)),))
    asked = data.draw(st.just(asked) | junk(Proposal, asked) | JUNK)
    verdict = authorise(wild, asked, data.draw(st.just(NOW) | JUNK))
    assert verdict.allowed == all(gate.passed for gate in verdict.gates) and len(verdict.gates) == 11


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_r9_the_mode_changes_neither_verdict_nor_gate_nor_number(data):
    asked = ask(data.draw(st.sampled_from(KINDS)), gpus=data.draw(st.sampled_from([0, 8, 16])))
    of = data.draw(
        st.sampled_from(
            [with_job(), held(with_job(), "n0"), with_job(on=("n0", "n1")), state(), state(fleet(3))]
        )
    )
    of = data.draw(st.just(of) | junk(FleetState, of).filter(lambda each: each.mode in ("act",)))
    seen = [authorise(replace(of, mode=mode), asked, NOW) for mode in ("observe", "recommend", "act")]
    assert (
        len({(each.allowed, each.gate, each.gates, each.needs_approval, each.interrupts) for each in seen})
        == 1
    )
    assert seen[0].effect == "none"


def test_an_inventory_counted_before_judges_as_a_plain_one():
    of = held(with_job(), "n0")
    counted = replace(of, nodes=Inventory(of.nodes))
    for kind in KINDS:
        assert authorise(of, ask(kind), NOW) == authorise(counted, ask(kind), NOW)
    source = dict(of.nodes)
    kept = Inventory(source)
    source["n0"] = replace(source["n0"], maintenance="bob")
    assert kept["n0"].maintenance == "" and len(kept) == len(list(kept)) == 20
