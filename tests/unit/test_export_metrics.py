"""The collector's metrics endpoint: golden page, promtool, label rules, series budget."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse
from unit.brain_help import Rig, ledger_row
from unit.incident_help import finding

from gpuvigil_collector.export.counts import XID_SERIES_MAX
from gpuvigil_collector.export.metrics import OPEN_SERIES_MAX, registry_of, render
from gpuvigil_collector.export.view import View
from gpuvigil_detectors.base import FactEvent, GpuFact, NodeFact

GOLDEN = Path(__file__).parents[1] / "golden/collector_metrics.txt"
FORBIDDEN = {"job", "instance", "namespace", "pod", "container", "endpoint", "service", "message", "text"}


def page(rig):
    """The fleet's families alone, without times that differ from run to run."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(rig.collector())
    text = render(registry).decode()
    return "".join(line for line in text.splitlines(keepends=True) if "_duration_seconds" not in line)


def series(text):
    return [sample for family in parse(text) for sample in family.samples]


def busy(directory):
    rig = Rig(directory, nodes=3, gpus=2)
    rig.tick()
    rig.fleet.node("n2", connected=False)
    rig.statistical.until_ns = rig.fleet.now_ns + 60 * 10**9
    rig.rules.findings = [
        finding("gpu_lost", "n1/gpu:GPU-n1-1"),
        finding("disk_full", "n0/filesystem:/", severity="warning"),
        finding("xid_application", "n0/gpu:GPU-n0-0", severity="info", notify=False),
    ]
    for origin in ("driver", "kernel_log"):
        rig.fleet.event("n1", "xid", "gpu:GPU-n1-1", code=79, origin=origin)
    rig.fleet.event("n0", "xid", "gpu:GPU-n0-0", code=31, origin="kernel_log")
    rig.store.rows = [ledger_row("n0", duplicates=2, refused={"bad_crc": 1}), ledger_row("n1", "events")]
    rig.tick()
    return rig


def test_the_page_is_as_agreed(tmp_path):
    """When this fails on purpose: write what the test got to tests/golden/collector_metrics.txt."""
    assert page(busy(tmp_path)) == GOLDEN.read_text()


@pytest.mark.needs_prometheus
def test_promtool_has_nothing_to_say(tmp_path):
    text = render(registry_of(busy(tmp_path).collector()))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_no_label_that_prometheus_or_kubernetes_renames(tmp_path):
    for sample in series(render(registry_of(busy(tmp_path).collector())).decode()):
        assert not FORBIDDEN & sample.labels.keys(), sample
        assert len(sample.labels) <= 10
        if not sample.name.startswith("process_"):
            assert sample.name.startswith("gpuvigil_")


def test_an_xid_seen_by_driver_and_kernel_log_is_one(tmp_path):
    rig = busy(tmp_path)
    totals = {s.labels["xid"]: s.value for s in series(page(rig)) if s.name == "gpuvigil_xid_total"}
    assert totals == {"79": 1, "31": 1}
    rig.fleet.event("n1", "xid", "gpu:GPU-n1-1", code=79, origin="kernel_log")
    rig.tick()
    assert next(s for s in series(page(rig)) if s.name == "gpuvigil_xid_total").value == 2


def test_a_finding_is_counted_when_it_begins_not_each_tick(tmp_path):
    rig = busy(tmp_path)
    for _ in range(5):
        rig.tick()
    began = [s for s in series(page(rig)) if s.name == "gpuvigil_findings_total"]
    assert {(s.labels["class"], s.value) for s in began} == {
        ("gpu_lost", 1), ("disk_full", 1), ("xid_application", 1)}  # fmt: skip


def big_node(name):
    uuids = [f"GPU-{name}-{i}" for i in range(8)]
    gpus = tuple(
        GpuFact(uuid=u, index=i, model="H100", pci_bus_id="", seen=True) for i, u in enumerate(uuids)
    )
    return NodeFact(
        node=name, boot_id="b", connected=True, first_seen_ns=1, last_seen_ns=1, clock_offset_ns=0,
        agent_version="0", gpu_source="nvml", note="", driver_version="1", gpus=gpus,
    )  # fmt: skip


def test_ten_thousand_sick_nodes_stay_under_the_budget(tmp_path):
    rig = Rig(tmp_path, nodes=0)
    rig.fleet.nodes = {f"node-{i}": big_node(f"node-{i}") for i in range(10_000)}
    rig.store.rows = [ledger_row(f"node-{i}", c, refused={"bad_crc": 1, f"made_up_{i}": 1})
                      for i in range(10_000) for c in ("metrics", "events")]  # fmt: skip
    classes = ["gpu_lost", "thermal", "ecc_uncorrectable"]
    rig.rules.findings = [
        finding(classes[i % 3], f"node-{i}/gpu:GPU-node-{i}-{g}") for i in range(1200) for g in range(2)
    ]
    rig.fleet._events = [
        FactEvent(node=n, time_ns=1, kind="xid", origin="driver", entity=f"gpu:GPU-{n}-0", code=79)
        for n in (f"node-{i}" for i in range(5000))
    ]
    rig.tick()
    found = series(render(registry_of(rig.collector())).decode())
    names = [sample.name for sample in found]
    assert len(found) < 20_000
    assert names.count("gpuvigil_xid_total") == XID_SERIES_MAX
    assert names.count("gpuvigil_incident_open") == OPEN_SERIES_MAX == 100
    assert next(s.value for s in found if s.name == "gpuvigil_xid_series_overflow_total") == 4000
    assert next(s.value for s in found if s.name == "gpuvigil_incidents_not_opened_total") > 0


def test_a_family_with_too_many_reasons_crowds_out_no_other(tmp_path):
    rig = busy(tmp_path)
    rig.store.counted = {f"aaa_total:r{i:04}": float(i) for i in range(2000)} | {"zzz_total": 7.0}
    found = [s for s in series(page(rig)) if s.name.startswith("gpuvigil_ingest_")]
    values = {sample.name: sample.value for sample in found}
    assert values["gpuvigil_ingest_zzz_total"] == 7 and values["gpuvigil_ingest_batches_total"] == 12
    many = {s.labels["reason"]: s.value for s in found if s.name == "gpuvigil_ingest_aaa_total"}
    assert len(many) == 50 and many["r1999"] == 1999 and sum(many.values()) == 1999 * 1000


def test_hostile_text_in_labels_still_parses(tmp_path):
    rig = busy(tmp_path)
    rig.store.rows = [ledger_row("n0", 'met"rics\n\\', refused={'x"} 1\nevil 1': 3})]
    assert any(s.labels.get("reason") == 'x"} 1\nevil 1' for s in series(page(rig)))
    assert not any(s.name == "evil" for s in series(page(rig)))


def test_before_the_first_tick_the_page_renders(tmp_path):
    rig = Rig(tmp_path)
    rig.pipeline.view = View(started_ns=1, now_ns=1)
    assert "gpuvigil_ticks_total 0.0" in page(rig)
