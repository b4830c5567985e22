"""Xid and SXid rules: every row of the catalogue, then bursts, repeats, stickiness, cancelling, patterns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, START_NS, Fleet, run

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.code_reports import CodeReports
from gpuvigil_detectors.rules import Rules
from gpuvigil_protos.fault_classes import FAULT_CLASSES

XID = catalogue.load("xid", catalogue.CodeTable)
SXID = catalogue.load("sxid", catalogue.CodeTable)
HOUR = 3600 * SECOND
STICKY_THREE_HOURS = {74, 79, 95, 109, 119}
APPLICATION = {13, 31, 43, 45, 68}
FATAL_BY_NVSENTINEL = {46, 48, 54, 62, 64, 79, 95, 110, 119, 120, 136, 140, 143, 156, 158}


def rows(table):
    return [pytest.param(code, row, id=str(code)) for row in table.xid for code in row.codes]


def tick_xid(code, table="xid", **fields):
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=2)
    fleet.event("n1", table, "gpu:GPU-n1-0", code=code, fields=fields)
    found = rules.tick(fleet.advance())
    return {finding.rule: finding for finding in found}, fleet, rules


@pytest.mark.parametrize(("code", "row"), rows(XID))
def test_every_xid_of_the_catalogue_gives_its_class_and_severity(code, row):
    found, _, _ = tick_xid(code)
    finding = found[f"xid_{code}"]
    assert (finding.fault_class, finding.severity) == (row.fault_class, row.severity)
    assert finding.entity == "n1/gpu:GPU-n1-0"
    assert finding.notify == (row.notify and not row.settle_s)
    assert row.meaning in finding.sentence and str(code) in finding.sentence
    assert finding.fault_class in FAULT_CLASSES


@pytest.mark.parametrize(("code", "row"), rows(SXID))
def test_every_sxid_of_the_catalogue_gives_its_class_and_severity(code, row):
    found, _, _ = tick_xid(code, "sxid")
    finding = found[f"sxid_{code}"]
    assert (finding.fault_class, finding.severity, finding.notify) == (
        row.fault_class,
        row.severity,
        row.notify and not row.settle_s,
    )


def test_a_non_fatal_line_of_a_switch_speaks_for_itself_when_no_gpu_does():
    found, fleet, rules = tick_xid(20001, "sxid")
    assert not found["sxid_20001"].notify
    later = run(rules, fleet, 16)
    assert [finding.notify for finding in later if finding.rule == "sxid_20001"] == [True]


def test_the_catalogue_holds_what_the_vendor_numbers_from_1_to_173():
    assert set(XID.by_code()) == set(range(1, 174))


def test_lists_of_the_sources_are_in_the_data():
    by_code = XID.by_code()
    assert {code for code, row in by_code.items() if row.sticky_s} == STICKY_THREE_HOURS
    assert all(row.sticky_s == 3 * 3600 for row in by_code.values() if row.sticky_s)
    assert {code for code, row in by_code.items() if "D" in row.exempt} == APPLICATION | {109}
    assert {code for code, row in by_code.items() if "M" in row.exempt} == APPLICATION | {63, 92, 109}
    assert by_code.keys() >= FATAL_BY_NVSENTINEL and all(by_code[code].fatal for code in FATAL_BY_NVSENTINEL)
    assert not any(by_code[code].fatal or by_code[code].notify for code in APPLICATION)


@given(code=st.integers(174, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_an_unknown_xid_is_a_warning_for_a_person_and_never_fatal(code):
    finding = tick_xid(code, severity="Fatal")[0][f"xid_{code}"]
    assert finding.severity == "warning" and finding.notify
    assert dict(finding.evidence.facts)["fatal"] == "no"


def test_driver_event_and_kernel_line_are_one_signal():
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=1)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79, origin="driver")
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79, origin="kernel_log", time_ns=fleet.now_ns + SECOND)
    (finding,) = rules.tick(fleet.advance(2))
    assert finding.evidence.observed == 1.0 and finding.origin == "driver+kernel_log"


def test_coalesced_lines_count_for_what_they_stand_for():
    finding = tick_xid(31, count="250")[0]["xid_31"]
    assert finding.evidence.observed == 250.0
    assert tick_xid(31, count="9" * 400)[0]["xid_31"].evidence.observed == 1.0


def test_a_storm_of_application_xids_notifies_nobody():
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=8)
    for _ in range(40):
        for gpu in range(8):
            for code in APPLICATION:
                fleet.event("n1", "xid", f"gpu:GPU-n1-{gpu}", code=code, fields={"gpc": "1", "tpc": "2"})
        found = rules.tick(fleet.advance(400))
        assert found and not any(finding.notify for finding in found)
        assert {finding.severity for finding in found} == {"info"}


@pytest.mark.parametrize(("code", "fields"), [(31, {}), (13, {"gpc": "3", "tpc": "1"})])
def test_an_application_xid_that_keeps_to_one_unit_alone_is_for_a_person(code, fields):
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=8)
    for burst in range(5):
        fleet.event("n1", "xid", "gpu:GPU-n1-3", code=code, fields=fields)
        found = [finding for finding in rules.tick(fleet.advance(400)) if finding.notify]
        assert bool(found) == (burst == 4)
    (pattern,) = found
    assert pattern.entity == "n1/gpu:GPU-n1-3" and pattern.severity == "warning"
    assert "5 bursts" in pattern.sentence and "alone" in pattern.sentence


def test_an_xid_13_on_changing_units_is_no_pattern():
    fleet, rules = Fleet(), Rules()
    for burst in range(12):
        fleet.event("n1", "xid", "gpu:GPU-n1-3", code=13, fields={"gpc": str(burst), "tpc": "0"})
        assert not any(finding.notify for finding in rules.tick(fleet.advance(400)))


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=40).map(sorted))
@settings(max_examples=60, deadline=None)
def test_bursts_are_repeats_within_three_minutes_and_five_are_a_repeat(offsets_s):
    reports = CodeReports(XID, "Xid")
    event = FactEvent(node="n", time_ns=0, kind="xid", origin="driver", entity="gpu:g", code=94)
    bursts, last = 0, None
    for offset in offsets_s:
        reports.take(replace(event, time_ns=START_NS + offset * SECOND), START_NS + offset * SECOND)
        bursts += last is None or offset - last > 180
        last = offset
    (finding,) = reports.findings(START_NS + last * SECOND)
    assert finding.evidence.observed == len(offsets_s)
    assert dict(finding.evidence.facts)["bursts_24h"] == str(bursts)
    assert finding.severity == ("critical" if bursts >= 5 else "warning")


@given(st.sampled_from(sorted({*STICKY_THREE_HOURS, 48, 94, 62, 46})), st.integers(0, 4 * 3600))
@settings(max_examples=80, deadline=None)
def test_stickiness_ends_to_the_second(code, age_s):
    reports = CodeReports(XID, "Xid")
    event = FactEvent(node="n", time_ns=START_NS, kind="xid", origin="driver", entity="gpu:g", code=code)
    reports.take(event, START_NS)
    bound_s = 3 * 3600 if code in STICKY_THREE_HOURS else 600
    assert bool(reports.findings(START_NS + age_s * SECOND)) == (age_s <= bound_s)


def test_162_cancels_163_and_not_the_other_way_round():
    _, fleet, rules = tick_xid(163)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=162)
    assert {finding.rule for finding in rules.tick(fleet.advance())} == {"xid_162"}
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=163)
    assert {finding.rule for finding in rules.tick(fleet.advance())} == {"xid_162", "xid_163"}


def test_a_reset_clears_what_is_not_sticky():
    _, fleet, rules = tick_xid(48)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79)
    rules.tick(fleet.advance())
    fleet.event("n1", "gpu_returned", "gpu:GPU-n1-0")
    assert {finding.rule for finding in rules.tick(fleet.advance())} == {"xid_79"}


def test_a_boot_clears_what_is_not_sticky_on_that_node_alone():
    _, fleet, rules = tick_xid(48)
    fleet.node("n2", gpus=1)
    fleet.event("n2", "xid", "gpu:GPU-n2-0", code=48)
    rules.tick(fleet.advance())
    fleet.node("n1", boot_id="b2")
    assert {finding.entity for finding in rules.tick(fleet.advance())} == {"n2/gpu:GPU-n2-0"}


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_recovery_action_outranks_the_table(code):
    names = {1: "GPU reset", 2: "node reboot", 3: "drain P2P", 4: "drain and reset"}
    _, fleet, rules = tick_xid(94)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=154, origin="kernel_log", fields={"to_code": hex(code)})
    found = {finding.rule: finding for finding in rules.tick(fleet.advance())}
    assert dict(found["xid_94"].evidence.facts)["action"] == f"driver: {names[code]}"
    assert names[code] in found["xid_94"].sentence
    assert found["recovery_action"].fault_class == "ecc_uncorrectable" and found["recovery_action"].notify
    assert not found["xid_154"].notify


def test_an_unknown_recovery_action_goes_to_a_person_and_none_ends_it():
    fleet, rules = Fleet(), Rules()
    gpu = fleet.gpu("n1")
    fleet.set("gpu_recovery_action", gpu, 99)
    finding = run(rules, fleet, 100)[0]
    assert finding.severity == "warning" and "ask a person" in finding.sentence and finding.notify
    fleet.set("gpu_recovery_action", gpu, 0)
    assert run(rules, fleet, 3) == []


def test_xid_74_waits_for_the_links_and_takes_their_class():
    fleet, rules = Fleet(), Rules()
    gpu = fleet.gpu("n1")
    fleet.set("gpu_nvlink_links_active", gpu, 18)
    run(rules, fleet, 3)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=74)
    assert [finding.notify for finding in run(rules, fleet, 1)] == [False]
    fleet.set("gpu_nvlink_links_active", gpu, 17)
    found = run(rules, fleet, 8)
    assert {(finding.fault_class, finding.notify) for finding in found} == {("nvlink_down", True)}


def test_xid_74_alone_speaks_after_its_wait():
    _, fleet, rules = tick_xid(74)
    (finding,) = run(rules, fleet, 16)
    assert finding.notify and finding.fault_class == "nvlink_errors"


@pytest.mark.parametrize(("word", "severity"), [("Fatal", "critical"), ("Nonfatal", "warning")])
@pytest.mark.parametrize("code", [144, 149, 150])
def test_nvlink5_rows_follow_the_word_in_the_line(code, word, severity):
    assert tick_xid(code, severity=word)[0][f"xid_{code}"].severity == severity


def test_a_late_event_is_judged_at_its_own_time():
    fleet, rules = Fleet(), Rules()
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=48, time_ns=START_NS - HOUR)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79, time_ns=START_NS - HOUR)
    (finding,) = rules.tick(fleet.advance())
    assert finding.rule == "xid_79" and finding.start_ns == START_NS - HOUR


def test_an_event_from_the_future_is_of_now():
    fleet, rules = Fleet(), Rules()
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=48, time_ns=START_NS + 100 * HOUR)
    (finding,) = rules.tick(fleet.advance())
    assert finding.end_ns == fleet.now_ns


def test_drills_are_marked():
    fleet, rules = Fleet(), Rules()
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79, synthetic=True)
    assert [finding.synthetic for finding in rules.tick(fleet.advance())] == [True]


def test_kernel_lines_blame_the_device_they_name():
    fleet, rules = Fleet(), Rules()
    fleet.event("n1", "kernel", fields={"rule": "nvme_timeout", "device": "nvme3"})
    fleet.event("n1", "kernel", fields={"rule": "oom_kill"})
    fleet.event("n1", "kernel", fields={"rule": "made_up"})
    found = {finding.entity: finding.fault_class for finding in rules.tick(fleet.advance())}
    assert found == {"n1/disk:nvme3": "disk_failing", "n1/node": "oom"}


def test_the_number_154_alone_asks_for_nothing():
    _, fleet, rules = tick_xid(79)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=154, origin="driver")
    found = {finding.rule: finding for finding in rules.tick(fleet.advance())}
    assert "recovery_action" not in found and "the driver asks for" not in found["xid_79"].sentence


def test_a_test_that_the_node_passed_ends_what_is_sticky_there_and_nothing_that_comes_later():
    _, fleet, rules = tick_xid(79)
    fleet.node("n2", gpus=1)
    fleet.event("n2", "xid", "gpu:GPU-n2-0", code=79)
    rules.tick(fleet.advance())
    fleet.event("n1", "proven", "node")
    assert {finding.entity for finding in rules.tick(fleet.advance())} == {"n2/gpu:GPU-n2-0"}
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79)
    found = rules.tick(fleet.advance())
    assert {finding.entity for finding in found} == {"n1/gpu:GPU-n1-0", "n2/gpu:GPU-n2-0"}
    assert all(finding.start_ns > fleet.now_ns - 10 * SECOND for finding in found if "n1" in finding.entity)
