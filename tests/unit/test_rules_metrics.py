"""Metric rules: each fault of the catalogue is found, its healthy neighbour is not, and hysteresis holds."""

from __future__ import annotations

import math

import pytest
from unit.fake_snapshot import SECOND, Fleet, run
from unit.rule_cases import FAULTS, HEALTHY_GPU, HEALTHY_HOST

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.conditions import TESTS
from gpuvigil_detectors.metric_rules import MetricRules
from gpuvigil_detectors.rules import Rules
from gpuvigil_protos.catalog import CATALOG
from gpuvigil_protos.fault_classes import FAULT_CLASSES

RULES = catalogue.load("metric_rules", catalogue.MetricRules).rule


def healthy(warm_s=45):
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=2)
    for gpu in (0, 1):
        for metric, value in HEALTHY_GPU.items():
            fleet.set(metric, fleet.gpu("n1", gpu), value)
        for metric in (
            "nvlink_crc_errors_total",
            "nvlink_replay_errors_total",
            "nvlink_recovery_errors_total",
        ):
            fleet.set(metric, f"n1/nvlink:GPU-n1-{gpu}/3", 0.0)
    for metric, (entity, value) in HEALTHY_HOST.items():
        fleet.set(metric, f"n1/{entity}", value)
    assert run(rules, fleet, warm_s) == []
    return fleet, rules


@pytest.mark.parametrize(
    ("values", "entity", "within_s", "rule", "fault_class", "blamed"),
    FAULTS,
    ids=[fault[3] for fault in FAULTS],
)
def test_each_fault_is_found_with_the_right_entity(values, entity, within_s, rule, fault_class, blamed):
    fleet, rules = healthy()
    for metric, value in values.items():
        fleet.set(metric, f"n1/{entity}", value)
    found = run(rules, fleet, within_s)
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [(rule, fault_class, f"n1/{blamed}")]
    assert found[0].notify and any(character.isdigit() for character in found[0].sentence)
    assert "nan" not in found[0].sentence and "{" not in found[0].sentence


def test_every_rule_but_the_recorded_ones_has_its_fault_above():
    covered = {fault[3] for fault in FAULTS} | {"ecc_uncorrectable_present", "driver_slow", "cpu_pressure"}
    assert covered == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_the_table_names_what_there_is(rule):
    metrics = {rule.metric, rule.other, *(guard.metric for guard in rule.when)} - {""}
    assert metrics <= CATALOG.keys()
    assert rule.fault_class in FAULT_CLASSES
    assert {rule.test, *(guard.test for guard in rule.when)} <= TESTS
    assert set(rule.unless) <= {other.name for other in RULES}
    assert rule.test not in {"grows", "rises"} or CATALOG[rule.metric].wire == "level"
    assert rule.test != "counts" or CATALOG[rule.metric].wire == "rate"


def test_an_idle_gpu_may_step_its_pcie_link_down():
    fleet, rules = healthy()
    fleet.set("gpu_utilization_ratio", fleet.gpu("n1"), 0.0)
    run(rules, fleet, 11)
    fleet.set("gpu_pcie_link_generation", fleet.gpu("n1"), 1)
    assert run(rules, fleet, 60) == []


def test_a_gpu_that_just_went_idle_is_not_blamed_for_its_link():
    fleet, rules = healthy()
    fleet.set("gpu_utilization_ratio", fleet.gpu("n1"), 0.0)
    fleet.set("gpu_pcie_link_generation", fleet.gpu("n1"), 1)
    assert run(rules, fleet, 60) == []


def test_a_short_thermal_event_and_a_link_that_blinks_once_are_nothing():
    fleet, rules = healthy()
    fleet.set("gpu_clocks_event_reasons", fleet.gpu("n1"), 0x40)
    fleet.set("interface_up", "n1/interface:ib0", 0)
    run(rules, fleet, 2)
    fleet.set("gpu_clocks_event_reasons", fleet.gpu("n1"), 0x4)
    fleet.set("interface_up", "n1/interface:ib0", 1)
    fleet.set("interface_carrier_changes_total", "n1/interface:ib0", 5)
    assert run(rules, fleet, 60) == []


def test_links_and_interfaces_that_were_never_up_are_not_faults():
    fleet, rules = Fleet(), Rules()
    fleet.set("interface_up", "n1/interface:eth1", 0)
    fleet.set("gpu_nvlink_links_active", fleet.gpu("n1"), 12)
    fleet.set("gpu_nvlink_links", fleet.gpu("n1"), 18)
    fleet.set("filesystem_readonly", "n1/filesystem:/snap", 1)
    assert run(rules, fleet, 60) == []


@pytest.mark.parametrize("name", ["lo", "veth12ab", "docker0", "br-0a1b", "cali77"])
def test_virtual_interfaces_are_passed_over(name):
    fleet, rules = Fleet(), Rules()
    fleet.set("interface_up", f"n1/interface:{name}", 1)
    run(rules, fleet, 5)
    fleet.set("interface_up", f"n1/interface:{name}", 0)
    assert run(rules, fleet, 60) == []


def test_a_busy_disk_is_not_a_slow_disk():
    fleet, rules = healthy()
    fleet.set("disk_latency_seconds", "n1/disk:nvme0n1", 0.01)
    fleet.set("disk_operations_total", "n1/disk:nvme0n1", 9000.0)
    assert run(rules, fleet, 120) == []


def test_a_finding_clears_after_its_time_and_not_before():
    fleet, rules = healthy()
    fleet.set("gpu_clocks_event_reasons", fleet.gpu("n1"), 0x40)
    assert len(run(rules, fleet, 10)) == 1
    fleet.set("gpu_clocks_event_reasons", fleet.gpu("n1"), 0x4)
    assert len(run(rules, fleet, 28)) == 1
    assert run(rules, fleet, 4) == []


def test_the_value_must_fall_to_the_release_to_clear():
    fleet, rules = healthy()
    fleet.set("filesystem_available_bytes", "n1/filesystem:/scratch", 4e10)
    run(rules, fleet, 10)
    fleet.set("filesystem_available_bytes", "n1/filesystem:/scratch", 7e10)
    assert len(run(rules, fleet, 90)) == 1
    fleet.set("filesystem_available_bytes", "n1/filesystem:/scratch", 9e10)
    assert run(rules, fleet, 40) == []


def test_a_source_that_stops_neither_raises_nor_clears_until_it_is_let_go():
    fleet, rules = healthy()
    fleet.set("gpu_row_remap_pending", fleet.gpu("n1"), 1)
    assert len(run(rules, fleet, 3)) == 1
    fleet.stop(fleet.gpu("n1"))
    assert len(run(rules, fleet, 300)) == 1
    assert run(rules, fleet, 400) == []


def test_many_links_of_one_gpu_are_one_finding():
    fleet, rules = healthy()
    for link in range(18):
        fleet.set("nvlink_crc_errors_total", f"n1/nvlink:GPU-n1-0/{link}", 60.0 + link)
    found = run(rules, fleet, 30)
    assert len(found) == 1 and found[0].entity == fleet.gpu("n1")


def test_a_counter_that_was_reset_counts_from_there():
    fleet, rules = healthy()
    fleet.set("gpu_ecc_uncorrected_volatile_total", fleet.gpu("n1"), 2)
    assert {f.rule for f in run(rules, fleet, 7)} == {"ecc_uncorrectable_new"}
    fleet.set("gpu_ecc_uncorrected_volatile_total", fleet.gpu("n1"), 0)
    assert run(rules, fleet, 40) == []
    fleet.set("gpu_ecc_uncorrected_volatile_total", fleet.gpu("n1"), 1)
    assert {f.rule for f in run(rules, fleet, 2)} == {"ecc_uncorrectable_new"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1.0, 3e38])
def test_absurd_values_break_nothing(value):
    fleet, rules = healthy(3)
    for metric in HEALTHY_GPU:
        fleet.set(metric, fleet.gpu("n1"), value)
    for metric, (entity, _) in HEALTHY_HOST.items():
        fleet.set(metric, f"n1/{entity}", value)
    for finding in run(rules, fleet, 90):
        assert "nan" not in finding.sentence and "inf " not in finding.sentence
        assert finding.evidence.observed is None or math.isfinite(finding.evidence.observed)


def test_a_second_tick_within_a_second_counts_nothing_twice():
    fleet, rules = Fleet(), MetricRules()
    fleet.set("nvlink_crc_errors_total", "n1/nvlink:GPU-a/0", 0.6)
    for _ in range(90):
        snapshot = fleet.advance()
        for extra in range(5):
            snapshot.now_ns += SECOND // 10 * (extra > 0)
            assert rules.tick(snapshot) == []
