"""R15: every decision, transition and operator's write is an entry of the chain, under its incident."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from unit.action_help import World, action, proposal

from gpuvigil_collector.action import Gate, Signal, Verdict
from gpuvigil_collector.audit import Decisions, operator_note, transitions
from gpuvigil_collector.journal import Journal


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "journal", entries_max=1000, keep_s=1e9)
    yield made
    made.close()


def verdict(*, allowed, detail="1 of 1 used"):
    gates = (
        Gate(name="mode", passed=True, detail="act"),
        Gate(name="budgets", passed=allowed, detail=detail),
    )
    return Verdict(
        allowed=allowed, gate="" if allowed else "budgets", gates=gates, effect="act" if allowed else "none"
    )


def test_r15_decisions_carry_every_gates_numbers_and_are_told_when_they_change():
    decisions = Decisions()
    one = proposal(evidence=(Signal(origin="driver", rule="xid_79", start_ns=1, fatal=True),))
    (note,) = decisions.note(one, verdict(allowed=False), 5)
    told = json.loads(note.detail)
    assert (note.what, note.incident, note.time_ns) == ("action_denied", "i1", 5)
    assert told["gates"] == [["mode", True, "act"], ["budgets", False, "1 of 1 used"]]
    assert told["gate"] == "budgets" and told["evidence"] == ["driver:xid_79"] and told["action"] == "a1"
    for tick in range(3):
        assert decisions.note(one, verdict(allowed=False, detail=f"{tick} s"), 6) == []
    (note,) = decisions.note(one, verdict(allowed=True), 9)
    assert note.what == "action_allowed" and json.loads(note.detail)["the_one_before_repeated"] == 3
    assert decisions.note(replace(one, id="a2"), verdict(allowed=True), 9), "each proposal has its own"


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("gpuvigil_collector.audit._REMEMBERED_MAX", 10)
    decisions = Decisions()
    for number in range(50):
        decisions.note(proposal(f"a{number}"), verdict(allowed=True), 1)
    assert len(decisions._last) == 10


def test_r15_an_actions_life_is_in_the_chain_under_its_incident(tmp_path, journal):
    world = World(tmp_path / "state")
    world.executor.resume()
    world.executor.submit(action())
    world.step(2)
    told = world.executor.results()
    journal.note(transitions(told))
    journal.note([operator_note(time.time_ns(), "ann", "paused", "new firmware")])
    journal.record([], ())
    assert not journal.waiting
    world.executor.told(told[-1].sequence)
    entries = journal.entries("i1")
    assert [entry["what"] for entry in entries] == [
        "action_intended",
        "action_issued",
        "action_issued",
        "action_done",
    ]
    done = json.loads(entries[-1]["detail"])
    assert (done["action"], done["actuator"], done["generation"], done["node"]) == ("a1", "fake", 7, "n1")
    assert json.loads(journal.entries("")[0]["detail"]) == {"who": "ann", "why": "new firmware"}
    assert journal.verify() is None and world.executor.results() == []
