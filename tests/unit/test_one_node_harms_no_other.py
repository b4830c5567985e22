"""Floods and lies of one node, and damage on disk: the others' faults are still seen, at the usual pace."""

from __future__ import annotations

import time

import pytest
from unit.brain_help import Rig
from unit.fake_snapshot import Fleet
from unit.incident_help import Life, finding, gpu

from gpuvigil_collector.export.counts import XID_SERIES_MAX
from gpuvigil_collector.incidents.incident import fingerprint
from gpuvigil_collector.ingest.admission import check_hello
from gpuvigil_collector.ingest.ledger import Delivery, LedgerFile, row_of
from gpuvigil_collector.ingest.refusal import StreamRejectedError
from gpuvigil_collector.store_registry import Registry
from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.rules import Rules
from gpuvigil_protos.codec import SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb


def xid(node: str, code: int, entity: str, time_ns: int) -> FactEvent:
    return FactEvent(node=node, time_ns=time_ns, kind="xid", origin="driver", entity=entity, code=code)


def test_made_up_codes_of_one_node_cost_no_other_node_its_report() -> None:
    fleet, rules = Fleet(), Rules()
    fleet.node("good", gpus=1)
    fleet.node("bad", gpus=1)
    fleet.event("good", "xid", "gpu:GPU-good-0", code=79)
    rules.tick(fleet.advance())
    began = time.monotonic()
    for start in range(0, 20_000, 2000):
        for code in range(start, start + 2000):
            fleet.event("bad", "xid", "gpu:GPU-bad-0", code=100_000 + code)
        found = rules.tick(fleet.advance())
    assert time.monotonic() - began < 30, "a constant time an event"
    assert any(f.entity == "good/gpu:GPU-good-0" and f.fault_class == "gpu_lost" for f in found)
    assert sum(f.entity.startswith("bad/") for f in found) <= 500


def test_warnings_keep_no_critical_fault_out() -> None:
    life = Life(open_max=20, node_max=50)
    ports = [f"n{n}/interface:ib{port}" for n in range(5) for port in range(8)]
    life.tick(0, *(finding("nic_flap", port, severity="warning") for port in ports))
    assert len(life.tracker.open) == 20
    life.tick(1, finding("gpu_lost", gpu("n9")))
    assert fingerprint("gpu_lost", gpu("n9")) in {i.fingerprint for i in life.tracker.open.values()}


def test_a_flood_of_claims_of_one_node_does_not_hold_up_the_tick() -> None:
    life = Life()
    flood = [finding("gpu_lost", f"n1/disk:d{number}") for number in range(20_000)]
    began = time.monotonic()
    life.tick(0, *flood, finding("gpu_lost", gpu("n2")))
    assert time.monotonic() - began < 6, "it took 15 s before the bound"
    targets = {incident.target for incident in life.tracker.open.values()}
    assert gpu("n2") in targets
    assert len(targets) <= 52, "the node's own bound and the one that stands for the rest"


def test_new_xids_take_the_place_of_the_quietest_series(tmp_path) -> None:
    rig = Rig(tmp_path, nodes=1, gpus=1)
    for code in range(XID_SERIES_MAX + 500):
        rig.fleet._events.append(xid("bad", code, "gpu:GPU-x", code))
    rig.fleet._events.append(xid("n0", 79, "gpu:GPU-n0-0", 10**9))
    rig.tick()
    shown = {(key.node, key.xid) for key in rig.counts.xids}
    assert ("n0", 79) in shown and len(shown) == XID_SERIES_MAX
    assert rig.counts.xids_overflow == 501


@pytest.mark.parametrize("damage", [slice(4096, 8192), slice(0, 100)])
def test_a_damaged_registry_is_set_aside(tmp_path, damage: slice) -> None:
    path = tmp_path / "registry.sqlite"
    rig = Rig(tmp_path / "rig", nodes=200)
    registry = Registry(path)
    registry.save(list(rig.fleet.nodes.values()))
    registry.close()
    data = bytearray(path.read_bytes())
    data[damage] = b"\xff" * len(data[damage])
    path.write_bytes(data)
    assert Registry(path).load() == {}
    assert path.with_suffix(".broken").exists()


def test_a_registry_row_that_is_no_node_costs_that_row_alone(tmp_path) -> None:
    rig = Rig(tmp_path / "rig", nodes=2)
    registry = Registry(tmp_path / "registry.sqlite")
    registry.save(list(rig.fleet.nodes.values()))
    registry._db.execute("UPDATE node SET fact = '{' WHERE node = 'n0'")
    assert list(registry.load()) == ["n1"]


def test_a_damaged_ledger_is_set_aside_and_begins_anew(tmp_path) -> None:
    path = tmp_path / "ledger-00.sqlite"
    file = LedgerFile.own(path)
    delivery = Delivery()
    delivery.received.add(1, 50)
    file.commit([row_of((f"n{n}", "b", "metrics"), delivery, 1) for n in range(500)], 7)
    file.close()
    assert LedgerFile.own(path).last_segment() == 7
    data = bytearray(path.read_bytes())
    data[4096:12_288] = b"\xff" * 8192
    path.write_bytes(data)
    for tail in ("-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)
    assert LedgerFile.own(path).last_segment() == 0, "so that the recordings are read back"
    assert path.with_suffix(".broken").exists()


@pytest.mark.parametrize("uuid", ["", 'GPU"><img src=x>', "GPU 1", "GPU\x1b[31m"])
def test_an_inventory_with_a_name_that_no_gpu_has_is_refused(uuid: str) -> None:
    hello = pb.Hello(schema_version=SCHEMA_VERSION, node="n1", boot_id="b", role=pb.ROLE_LIVE, sent_ns=1,
                     inventory=pb.Inventory(gpus=[pb.Gpu(uuid=uuid)]))  # fmt: skip
    with pytest.raises(StreamRejectedError, match=r"inventory\.gpus\.uuid"):
        check_hello(hello)


def test_a_kernel_line_cannot_name_a_device_that_is_markup() -> None:
    fleet, rules = Fleet(), Rules()
    fleet.node("n1", gpus=1)
    line = next(row.rule for row in rules._line_rows.values() if row.blame == "device")
    fleet.event("n1", "kernel", "node", origin="kernel_log", fields={"rule": line, "device": '<b>"x'})
    assert {f.entity for f in rules.tick(fleet.advance())} == {"n1/node"}


def test_what_was_down_before_a_restart_is_still_down_after_it() -> None:
    """A link that is down reads 0; that it was ever up is known from the open incident alone."""
    fleet = Fleet()
    fleet.node("n1", gpus=1)
    port, links, disk = "n1/interface:ib0", "n1/gpu:GPU-n1-0", "n1/filesystem:/"

    def run(rules: Rules, up: float, seconds: int) -> list:
        for _ in range(seconds):
            fleet.set("interface_up", port, up)
            fleet.set("gpu_nvlink_links_active", links, 18.0 if up else 17.0)
            fleet.set("filesystem_readonly", disk, 1.0 - up)
            found = rules.tick(fleet.advance())
        return found

    before = Rules()
    run(before, 1.0, 40)
    down = run(before, 0.0, 60)
    assert {f.fault_class for f in down} >= {"nic_down", "nvlink_down", "fs_readonly"}
    after = Rules()
    after.remember(down)
    held = run(after, 0.0, 60)
    assert {(f.rule, f.entity) for f in held} == {(f.rule, f.entity) for f in down}
    assert run(after, 1.0, 60) == []
    forgetful = run(Rules(), 0.0, 60)
    assert forgetful == [], "without the memory it would say that all is well"
