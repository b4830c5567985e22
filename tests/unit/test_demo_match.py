"""The demo's judge: who is found, who is not, what is a false alarm. No incident may count twice."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.simulate.faults import KINDS
from gpuvigil_cli.client import CliError
from gpuvigil_cli.demo.match import Fault, as_json, join, load_limits, parse_truth
from gpuvigil_protos.fault_classes import FAULT_CLASSES

SECOND = 1_000_000_000
GPU = "sim-01/gpu:GPU-a"


def limit(_fault_class: str) -> int:
    return 15 * SECOND


def fault(at: int = 100, target: str = GPU, fault_class: str = "gpu_lost", *, silent: bool = False) -> Fault:
    return Fault(fault="f", fault_class=fault_class, target=target, injected_ns=at * SECOND, silent=silent)


def incident(at: float = 101, target: str = GPU, fault_class: str = "gpu_lost", name: str = "i1") -> dict:
    return {"id": name, "class": fault_class, "target": target, "opened_ns": round(at * SECOND)}


def test_the_right_incident_in_time_finds_the_fault() -> None:
    outcome = join([fault()], [incident()], limit)
    assert outcome.good
    row = as_json(outcome, nodes=16, gpus=8, seconds=1.25)
    assert row["faults"] == [
        {
            "fault": "f", "target": GPU, "injected_ns": 100 * SECOND, "found_ns": 101 * SECOND,
            "incident": "i1",
            "found_class": "gpu_lost", "found_target": GPU, "correct": True,
        }
    ]  # fmt: skip
    assert {key: row[key] for key in row if key != "faults"} == {
        "false_alarms": 0, "nodes": 16, "gpus": 8, "seconds": 1.2,
    }  # fmt: skip


@pytest.mark.parametrize("severity", ["info", "warning", "critical"])
def test_no_severity_is_forgiven_a_false_alarm(severity: str) -> None:
    stray = incident(fault_class="thermal", name="i2") | {"severity": severity}
    outcome = join([fault()], [incident(), stray], limit)
    assert outcome.false_alarms == (stray,)
    assert not outcome.good


@pytest.mark.parametrize(
    "wrong",
    [
        incident(99.9),
        incident(115.1),
        incident(target="sim-01/gpu:GPU-b"),
        incident(target="sim-01/node"),
        incident(target="sim-02/gpu:GPU-a"),
        incident(fault_class="thermal"),
        {"id": "i1"},
        {"id": "i1", "class": "gpu_lost", "target": GPU, "opened_ns": "100"},
    ],
    ids=["before", "late", "other-gpu", "other-scope", "other-node", "other-class", "empty", "no-time"],
)
def test_anything_else_is_a_miss_and_a_false_alarm(wrong: dict) -> None:
    outcome = join([fault()], [wrong], limit)
    assert not outcome.good
    assert [verdict.correct for verdict in outcome.verdicts] == [False]
    assert outcome.false_alarms == (wrong,)


def test_a_second_incident_about_a_found_fault_is_a_false_alarm() -> None:
    outcome = join([fault()], [incident(name="i2", at=103), incident()], limit)
    assert outcome.verdicts[0].incident["id"] == "i1"
    assert [row["id"] for row in outcome.false_alarms] == ["i2"]


def test_a_mistaken_incident_is_shown_beside_the_fault() -> None:
    outcome = join([fault()], [incident(fault_class="driver_hang", target="sim-01/node")], limit)
    row = as_json(outcome, nodes=1, gpus=1, seconds=1)["faults"][0]
    assert (row["found_class"], row["found_target"], row["correct"]) == ("driver_hang", "sim-01/node", False)


def test_a_silent_fault_is_right_when_nothing_is_said() -> None:
    storm = fault(fault_class="xid_application", silent=True, target="sim-01/node")
    assert join([storm], [], limit).good
    loud = join([storm], [incident(target="sim-01/node", fault_class="xid_application")], limit)
    assert not loud.good
    assert len(loud.false_alarms) == 1
    assert not loud.verdicts[0].correct


def test_no_fault_at_all_is_not_a_success() -> None:
    assert not join([], [], limit).good


rows = st.builds(
    incident, st.integers(0, 60), st.sampled_from([GPU, "b/node"]), st.sampled_from(["gpu_lost", "thermal"])
)
truths = st.builds(
    fault, st.integers(0, 60), st.sampled_from([GPU, "b/node"]), st.sampled_from(["gpu_lost", "thermal"])
)


@given(st.lists(truths, max_size=8), st.lists(rows, max_size=8))
def test_every_incident_finds_one_fault_or_is_a_false_alarm(faults: list[Fault], seen: list[dict]) -> None:
    seen = [{**row, "id": str(number)} for number, row in enumerate(seen)]
    outcome = join(faults, seen, limit)
    used = [verdict.incident["id"] for verdict in outcome.verdicts if verdict.correct]
    spare = [row["id"] for row in outcome.false_alarms]
    assert sorted(used + spare) == sorted(row["id"] for row in seen)
    assert len(outcome.verdicts) == len(faults)


def test_truth_lines_are_read_or_refused() -> None:
    line = json.dumps({"fault": "x", "class": "gpu_lost", "target": GPU, "injected_ns": 5})
    assert parse_truth(line, "t") == Fault(fault="x", fault_class="gpu_lost", target=GPU, injected_ns=5)
    for bad in ("", "{", "[]", "{}", line.replace("5", '"soon"')):
        with pytest.raises(CliError, match="not a line of truth"):
            parse_truth(bad, "t")


def test_published_limits_are_those_that_scenarios_state() -> None:
    published = load_limits()
    loud = {kind.fault_class: kind.limit_s for kind in KINDS.values() if not kind.silent}
    assert {name: published(name) for name in loud} == {name: s * SECOND for name, s in loud.items()}
    assert set(loud) <= set(FAULT_CLASSES)
