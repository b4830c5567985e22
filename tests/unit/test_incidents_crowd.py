"""One node's storm: bounded incidents, bounded work, and room for everybody else's faults."""

from __future__ import annotations

import pytest
from unit.incident_help import Life, finding, fleet, gpu

from gpuvigil_collector.incidents.ranking import Causes


def storm(count, node="n1", **more):
    return [finding("disk_slow", f"{node}/disk:d{i}", **more) for i in range(count)]


def of_node(life, node):
    return [one for one in life.tracker.open.values() if one.node == node]


def test_a_node_that_storms_gets_its_share_and_one_incident_for_the_rest():
    life = Life(node_max=50, open_max=100)
    many = storm(1400, severity="warning")
    life.hold(0, 6, *many)
    life.hold(6, 10, *many, finding("gpu_lost", gpu("n2"), at=6))
    assert len(of_node(life, "n1")) == 51
    (rest,) = [one for one in of_node(life, "n1") if one.fault_class == "monitor_fault"]
    assert rest.target == "n1/node" and rest.severity == "warning"
    assert "1350 further faults" in rest.cause and "disk_slow on n1/disk:d" in rest.cause
    assert [one.fault_class for one in of_node(life, "n2")] == ["gpu_lost"], "the others have room"
    assert life.tracker.not_opened == 1350, "each once"
    life.hold(10, 45, *many[:10])
    assert len(of_node(life, "n1")) == 10, "the storm is over: its incident too"


def test_the_rest_is_as_grave_as_the_gravest_that_found_no_room():
    life = Life(node_max=2)
    full = finding("disk_full", "n1/filesystem:/", severity="critical")
    life.hold(0, 6, *storm(3, severity="warning"), full)
    assert [one.severity for one in of_node(life, "n1")] == ["warning", "warning", "critical"]


@pytest.mark.parametrize("spread", [1, 100])
def test_the_work_grows_with_the_claims_not_with_claims_times_incidents(monkeypatch, spread):
    """Counted, not timed: how often the table is asked whether one claim explains another."""
    asked = 0
    explains = Causes.explains

    def counting(self, lead, claim):
        nonlocal asked
        asked += 1
        return explains(self, lead, claim)

    monkeypatch.setattr(Causes, "explains", counting)
    costs = []
    for count in (1250, 5000):
        life = Life(fleet(spread))
        many = [finding("disk_slow", f"n{i % spread}/disk:d{i}") for i in range(count)]
        life.hold(0, 5, *many)
        asked = 0
        life.tick(5, *many)
        costs.append(asked)
    assert costs[1] <= 5000 * 51, "at most a node's own incidents are looked at"
    assert costs[1] <= 3 * 4 * max(costs[0], 5000)
