"""A backlog brings old events: each is judged at its own time, and what has lapsed since opens nothing."""

from __future__ import annotations

import pytest
from unit.fake_snapshot import SECOND, START_NS, Fleet

from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.structural import Structural

GPU = "gpu:GPU-n1-0"


def found(detector, kind, age_s, reads=True, **fields):
    """Rules of the findings that one event leaves, told `age_s` after it happened, on a GPU that `reads`."""
    world, judge = Fleet(), detector()
    world.node("n1", gpus=1)
    if reads:
        world.set("gpu_temperature_celsius", "n1/" + GPU, 50.0)
    for _ in range(3):
        judge.tick(world.advance())
    world.event("n1", kind, GPU, time_ns=START_NS - int(age_s * SECOND), **fields)
    return [(one.rule, one.start_ns) for one in judge.tick(world.advance())]


@pytest.mark.parametrize(
    ("kind", "fields", "rule", "sticky_s"),
    [
        ("xid", {"code": 48}, "xid_48", 600),
        ("xid", {"code": 79}, "xid_79", 10_800),
        ("sxid", {"code": 20034}, "sxid_20034", 600),
        ("kernel", {"fields": {"rule": "fs_remount_readonly"}}, "kernel_fs_remount_readonly", 10_800),
    ],
)
def test_a_report_holds_for_its_sticky_time_from_when_it_happened(kind, fields, rule, sticky_s):
    for age_s in (0, 301, sticky_s - 60):
        assert found(Rules, kind, age_s, **fields) == [(rule, START_NS - age_s * SECOND)]
    assert found(Rules, kind, sticky_s + 60, **fields) == []


def test_a_gpu_that_was_lost_long_ago_and_reads_now_is_not_lost():
    assert found(Structural, "gpu_lost", 3600) == []
    assert found(Structural, "driver_stuck", 3600) == []
    assert found(Structural, "gpu_lost", 3600, reads=False) == [("gpu_lost", START_NS - 3600 * SECOND)]
