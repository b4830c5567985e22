"""A drill never touches a real fault, whichever of the two comes first: not in reports, not in incidents."""

from __future__ import annotations

import itertools

import pytest
from unit.fake_snapshot import Fleet, run
from unit.incident_help import T0, Life, finding, fleet, gpu

from gpuvigil_collector.export.view import View
from gpuvigil_collector.web import rows
from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.structural import Structural

GPU = "gpu:GPU-n1-0"
ORDERS = list(itertools.permutations((False, True)))


def told(detector_of, *events):
    """Play events, a second apart; return (rule, synthetic) of what holds at the end."""
    world, detector = Fleet(), detector_of()
    world.node("n1", gpus=2)
    found = []
    for kind, fields in events:
        world.event("n1", kind, GPU, **fields)
        found = detector.tick(world.advance())
    return {(one.rule, one.synthetic) for one in found}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("detector", "kind", "rule", "fields"),
    [
        (Rules, "xid", "xid_79", {"code": 79}),
        (Rules, "sxid", "sxid_20034", {"code": 20034}),
        (Rules, "kernel", "kernel_fs_remount_readonly", {"fields": {"rule": "fs_remount_readonly"}}),
        (Rules, "recovery_action", "recovery_action", {"code": 1}),
        (Structural, "gpu_lost", "gpu_lost", {}),
        (Structural, "driver_stuck", "driver_stuck", {}),
        (Structural, "driver_crashed", "driver_crashed", {}),
    ],
)
def test_a_drill_and_a_fault_are_two_findings(detector, kind, rule, fields, order):
    found = told(detector, *((kind, {**fields, "synthetic": synthetic}) for synthetic in order))
    assert {one for one in found if one[0] == rule} == {(rule, False), (rule, True)}


@pytest.mark.parametrize(
    ("detector", "fault", "end", "rule"),
    [
        (Rules, ("xid", {"code": 48}), ("gpu_returned", {}), "xid_48"),
        (Rules, ("xid", {"code": 163}), ("xid", {"code": 162}), "xid_163"),
        (Rules, ("recovery_action", {"code": 1}), ("gpu_returned", {}), "recovery_action"),
        (Structural, ("gpu_lost", {}), ("gpu_returned", {}), "gpu_lost"),
        (Structural, ("driver_stuck", {}), ("driver_recovered", {}), "driver_stuck"),
    ],
)
def test_a_drill_ends_no_fault_and_a_real_end_does(detector, fault, end, rule):
    drilled = (end[0], {**end[1], "synthetic": True})
    assert (rule, False) in told(detector, fault, drilled)
    assert (rule, False) not in told(detector, fault, end)


@pytest.mark.parametrize("order", ORDERS)
def test_a_drill_and_a_fault_are_two_incidents(order):
    life = Life()
    held = []
    for second, synthetic in enumerate(order):
        held.append(finding("gpu_error", gpu("n1"), rule="xid_119", at=second, synthetic=synthetic))
        life.hold(second * 5, second * 5 + 5, *held)
    assert [one.synthetic for one in life.tracker.open.values()] == list(order)
    view = View(started_ns=T0, now_ns=T0)
    assert [rows.incident(one, view)["synthetic"] for one in life.tracker.open.values()] == list(order)
    assert len({one.fingerprint for one in life.tracker.open.values()}) == 2
    life.hold(10, 45, *(one for one in held if not one.synthetic))
    assert [one.synthetic for one in life.tracker.open.values()] == [False], "the drill's end ends the drill"


def test_a_drill_explains_no_fault_and_makes_no_node_hot():
    life = Life(fleet(2, gpus=4))
    lost = finding("gpu_lost", gpu("n1", 2), synthetic=True)
    hot = [finding("thermal", gpu("n1", i), synthetic=i > 1) for i in range(4)]
    life.hold(0, 6, lost, finding("nvlink_down", "n1/nvlink:GPU-n1-0/3"), *hot)
    real = {(one.fault_class, one.target) for one in life.tracker.open.values() if not one.synthetic}
    assert real == {("nvlink_down", "n1/nvlink:GPU-n1-0/3"), *(("thermal", gpu("n1", i)) for i in range(2))}


def test_the_drivers_word_in_a_drill_leaves_the_real_report_as_it_is():
    world, rules = Fleet(), Rules()
    world.node("n1", gpus=1)
    world.event("n1", "xid", GPU, code=79)
    before = {one.sentence for one in rules.tick(world.advance())}
    world.event("n1", "recovery_action", GPU, code=2, synthetic=True)
    after = {one.sentence for one in run(rules, world, 2) if not one.synthetic}
    assert after == before
