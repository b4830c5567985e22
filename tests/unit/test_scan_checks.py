"""What a scan's facts mean, and how a finding is shown."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent import scan
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_grammar import Grammar
from gpuvigil_agent.kernel_sources import KernelRecord
from gpuvigil_agent.scan_checks import Facts, catalogue, judge, state_of
from gpuvigil_agent.scan_host import gpus_on_pci, in_thread, kernel_events
from gpuvigil_agent.scan_report import as_json, as_text, dumps
from gpuvigil_protos.catalog import CATALOG

GPU = "gpu:GPU-1"


def found(readings, entity=GPU):
    """Findings of one entity's readings: code -> severity."""
    facts = Facts(readings={(metric, entity): value for metric, value in readings.items()})
    return {finding.code: finding.severity for finding in judge(facts)}


def event(kind="xid", code=79, **changes):
    fields = {
        "time_ns": 1,
        "kind": kind,
        "origin": "kernel_log",
        "entity": GPU,
        "code": code,
        "text": "a line",
    }
    return AgentEvent(**(fields | changes))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ({"gpu_ecc_uncorrected_volatile_total": 0}, {}),
        ({"gpu_ecc_uncorrected_volatile_total": 1}, {"gpu_ecc_uncorrectable": "critical"}),
        ({"gpu_row_remap_pending": 1}, {"gpu_row_remap_pending": "warning"}),
        ({"gpu_row_remap_failure": 1}, {"gpu_row_remap_failure": "critical"}),
        ({"gpu_clocks_event_reasons": 0x1 | 0x4 | 0x10}, {}),
        ({"gpu_clocks_event_reasons": 0x20}, {"gpu_thermal_slowdown": "warning"}),
        ({"gpu_clocks_event_reasons": 0x60}, {"gpu_thermal_slowdown": "critical"}),
        ({"gpu_clocks_event_reasons": 0x80}, {"gpu_power_brake": "critical"}),
        ({"gpu_recovery_action": 1}, {"gpu_recovery_action": "critical"}),
        ({"gpu_pcie_link_generation": 1, "gpu_pcie_link_generation_max": 5, "gpu_utilization_ratio": 0}, {}),
        (
            {"gpu_pcie_link_generation": 1, "gpu_pcie_link_generation_max": 5, "gpu_utilization_ratio": 0.9},
            {"gpu_pcie_generation": "warning"},
        ),
        (
            {"gpu_pcie_link_width": 8, "gpu_pcie_link_width_max": 16, "gpu_utilization_ratio": 0.9},
            {"gpu_pcie_width": "warning"},
        ),
        ({"gpu_pcie_link_width": 8, "gpu_pcie_link_width_max": 16}, {"gpu_pcie_width": "info"}),
        ({"gpu_nvlink_links_active": 18, "gpu_nvlink_links": 18}, {}),
        ({"gpu_nvlink_links_active": 17, "gpu_nvlink_links": 18}, {"gpu_nvlink_inactive": "critical"}),
        ({"gpu_nvlink_links_active": 0, "gpu_nvlink_links": 18}, {"gpu_nvlink_inactive": "warning"}),
        ({"gpu_temperature_celsius": 60}, {}),
        ({"gpu_temperature_celsius": 91}, {"gpu_hot": "warning"}),
    ],
)
def test_a_reading_of_a_gpu_means(readings, expected):
    assert found(readings) == expected


@pytest.mark.parametrize(
    ("entity", "readings", "expected"),
    [
        ("filesystem:/", {"filesystem_available_bytes": 50, "filesystem_size_bytes": 100}, {}),
        (
            "filesystem:/",
            {"filesystem_available_bytes": 9, "filesystem_size_bytes": 100},
            {"filesystem_space": "warning"},
        ),
        (
            "filesystem:/",
            {"filesystem_available_bytes": 0, "filesystem_size_bytes": 100},
            {"filesystem_space": "critical"},
        ),
        (
            "filesystem:/",
            {"filesystem_inodes_free": 1, "filesystem_inodes": 100},
            {"filesystem_inodes": "critical"},
        ),
        ("filesystem:/", {"filesystem_available_bytes": 0}, {}),
        ("filesystem:/", {"filesystem_readonly": 1}, {"filesystem_readonly": "critical"}),
        ("interface:eth0", {"interface_up": 1, "interface_carrier_changes_total": 9}, {}),
        (
            "interface:eth0",
            {"interface_up": 0, "interface_carrier_changes_total": 0},
            {"interface_down": "info"},
        ),
        (
            "interface:eth0",
            {"interface_up": 0, "interface_carrier_changes_total": 3},
            {"interface_down": "warning"},
        ),
        (
            "interface:ib0",
            {"interface_up": 0, "interface_carrier_changes_total": 3},
            {"interface_down": "critical"},
        ),
        (
            "node",
            {"node_memory_available_bytes": 1, "node_memory_total_bytes": 100},
            {"memory_low": "critical"},
        ),
        ("node", {"node_processes_blocked": 4}, {}),
    ],
)
def test_a_reading_of_the_host_means(entity, readings, expected):
    assert found(readings, entity) == expected


def test_every_row_names_a_metric_and_texts_that_fit():
    book = catalogue()
    for row in book.reading:
        assert {row.metric, row.other or row.metric, *row.when} <= set(CATALOG), row.code
        assert (row.test in ("share_below", "below_other")) == bool(row.other)
        assert len(row.code) <= 24
    codes = [code for row in book.xid for code in row.codes]
    assert len(codes) == len(set(codes)), "an Xid is in two rows"
    for row in (*book.reading, *book.fact, *book.xid, book.xid_unknown):
        assert row.meaning.endswith(".")
        assert row.next_step.endswith(".")


def test_every_rule_of_the_kernel_log_has_a_meaning():
    rules = {rule for rule, _ in Grammar()._patterns}
    assert rules == {rule for row in catalogue().fact for rule in row.rules}


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"code": 79}, "xid_79", "critical"),
        ({"code": 31}, "xid_31", "info"),
        ({"code": 999}, "xid_999", "warning"),
        ({"kind": "sxid", "code": 20034, "fields": {"severity": "Fatal"}}, "sxid_20034", "critical"),
        ({"kind": "sxid", "code": 12028, "fields": {"severity": "Nonfatal"}}, "sxid_12028", "warning"),
        ({"kind": "kernel", "code": 0, "fields": {"rule": "io_error"}}, "kernel_disk", "warning"),
        ({"kind": "gpu_lost", "code": 0}, "gpu_lost", "critical"),
        ({"kind": "driver_stuck", "code": 0}, "driver_hung", "critical"),
    ],
)
def test_a_report_means(changes, code, severity):
    (finding,) = judge(Facts(events=[event(**changes)] * 3))
    assert (finding.code, finding.severity, finding.target) == (code, severity, GPU)
    assert finding.evidence == "3 times, last: a line"


def test_an_injected_report_is_no_finding():
    assert judge(Facts(events=[event(synthetic=True)])) == []


def test_only_the_kernels_own_records_of_the_last_day_count():
    now, line = time.time_ns(), "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, GPU has fallen off the bus."
    day = 86400 * 10**9
    records = [KernelRecord(0, 3, 1, now - day - 1, line), KernelRecord(1, 3, 2, now, line),
               KernelRecord(0, 3, 3, now, line.replace("79", "48"))]  # fmt: skip
    assert [(e.code, e.entity) for e in kernel_events(records, {"0000:3b:00": "GPU-1"}.get)] == [(48, GPU)]


@pytest.mark.parametrize(
    ("severities", "checked", "expected"),
    [
        ([], ["gpus"], ("ok", 0)),
        (["info"], ["gpus"], ("ok", 0)),
        (["info", "warning"], ["x"], ("warning", 1)),
        (["warning", "critical"], ["x"], ("critical", 2)),
        ([], [], ("unknown", 3)),
        (["critical"], [], ("critical", 2)),
    ],
)
def test_states_and_exit_codes(severities, checked, expected):
    rows = {"info": "driver_none", "warning": "time_not_synchronised", "critical": "gpu_missing"}
    assert (
        state_of(judge(Facts(facts=[(rows[word], "node", "x") for word in severities])), checked) == expected
    )


@given(st.text(max_size=900), st.text(max_size=300))
def test_a_report_is_printable_and_80_columns_whatever_the_log_says(text, why):
    facts = Facts(events=[event(text=text)], unchecked=[("time", why)])
    report = as_json("n1", "critical", judge(facts), facts)
    assert json.loads(dumps(report))["findings"][0]["code"] == "xid_79"
    lines = as_text(report, colour=False).split("\n")
    assert all(line.isprintable() and len(line) <= 80 for line in lines)


def test_colour_is_for_terminals_alone():
    facts = Facts(events=[event()])
    report = as_json("n1", "critical", judge(facts), facts)
    assert "\x1b[" in as_text(report, colour=True)
    assert "\x1b" not in as_text(report, colour=False)


async def test_a_question_that_hangs_is_left_behind():
    go, started = threading.Event(), time.monotonic()
    try:
        assert await in_thread(lambda: go.wait(60) and None, 0.2) is None
        assert time.monotonic() - started < 5
    finally:
        go.set()
    assert await in_thread(lambda: None, 20) is True


def test_gpus_on_the_pci_bus_are_counted_without_a_driver():
    devices = {"0000:3b:00.0": ("0x10de", "0x030200"), "0000:3c:00.0": ("0x10de", "0x068000"),
               "0000:00:02.0": ("0x8086", "0x030000"), "0000:5e:00.0": ("0x10de", "0x030000")}  # fmt: skip

    class Files:
        def names(self, path):
            return list(devices)

        def read(self, path):
            *_, device, file = path.split("/")
            return devices[device][file == "class"] + "\n"

    assert gpus_on_pci(Files()) == 2


def test_a_bug_of_the_scan_is_unknown_and_no_warning_of_the_node(monkeypatch, capsys):
    async def bug(_config):
        raise ZeroDivisionError("<\x1b>")

    monkeypatch.setattr(scan, "_scan", bug)
    assert scan.main(["--simulate"]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err
    assert "\x1b" not in err
