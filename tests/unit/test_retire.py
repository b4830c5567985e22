"""A node that was taken away is forgotten after a week: no alarm for ever, no rows for ever, one entry."""

from __future__ import annotations

import pytest
from unit.brain_help import Rig
from unit.fake_snapshot import Fleet
from unit.test_store import NOW, Worker

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.store import Store
from gpuvigil_collector.store_events import BOOTS_PER_NODE
from gpuvigil_detectors.structural import Structural

DAY = 86_400
HOUR = 3600


def test_a_node_that_was_silent_for_a_week_is_forgotten_and_journaled_once(tmp_path):
    rig = Rig(tmp_path)
    rig.tick()
    rig.fleet.node("n1", connected=False)
    for day in range(6):
        rig.tick(DAY)
        assert "n1" in rig.pipeline.view.nodes, day
    rig.tick(DAY)
    rig.tick()
    assert set(rig.pipeline.view.nodes) == {"n0", "n2"}
    entries = rig.journal.entries("")
    assert [entry["what"] for entry in entries] == ["node_forgotten"]
    assert entries[0]["detail"].startswith("n1: silent for 7.0 days, 2 GPUs")
    assert rig.journal.verify() is None


def test_a_collector_that_was_off_for_a_week_gives_its_nodes_an_hour(tmp_path):
    rig = Rig(tmp_path)
    for node in ("n0", "n1"):
        rig.fleet.node(node, connected=False, last_seen_ns=rig.fleet.now_ns - 8 * DAY * 10**9)
    rig.tick()
    rig.fleet.node("n0", connected=True, last_seen_ns=rig.fleet.now_ns)
    rig.tick(HOUR - 60)
    assert set(rig.pipeline.view.nodes) == {"n0", "n1", "n2"}
    rig.tick(120)
    rig.tick()
    assert set(rig.pipeline.view.nodes) == {"n0", "n2"}


def test_nothing_of_a_forgotten_node_stays_in_the_store_nor_on_disk(tmp_path):
    store = Store(tmp_path)
    worker = Worker(store)
    for node in ("n1", "n2"):
        worker.up(node)
        worker.event(1, node)
        row = frames.LedgerRow(node, "boot-1", "events", 1, 1, 0, 0, {})
        store.feed(0, frames.Status({}, [row], {}), worker.planes)
    store.snapshot(NOW)
    store.mark_judged()
    assert not store.forget("n2"), "it is connected"
    store.feed(0, frames.NodeDown("n2", NOW), worker.planes)
    assert store.forget("n2")
    assert {row["node"] for row in store.ledger()} == {"n1"}
    assert all(name.startswith("n1/") for name in store.index("gpu_power_watts").entities)
    worker.event(1, "n2")
    assert [(event.node, event.judged) for event in store.snapshot(NOW).events] == [("n2", False)]
    store.close()
    again = Store(tmp_path)
    Worker(again).event(1, "n2")
    assert [event.judged for event in again.snapshot(NOW).events] == [False]
    assert set(again.snapshot(NOW).nodes) == {"n1"}


def test_the_ledger_keeps_a_nodes_newest_boots(tmp_path):
    store = Store(tmp_path)
    for boot in range(BOOTS_PER_NODE + 5):
        rows = [frames.LedgerRow("n1", f"b{boot:02}", name, 1, 1, 0, 0, {}) for name in ("metrics", "events")]
        store.feed(0, frames.Status({}, rows, {}), ())
    assert {row["boot_id"] for row in store.ledger()} == {f"b{n:02}" for n in range(5, BOOTS_PER_NODE + 5)}
    assert len(store.ledger()) == 2 * BOOTS_PER_NODE


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_lost_gpu_of_a_forgotten_node_is_no_longer_lost(synthetic):
    world, structural = Fleet(), Structural()
    world.node("n1", gpus=1)
    world.event("n1", "gpu_lost", "gpu:GPU-n1-0", synthetic=synthetic)
    assert [one.rule for one in structural.tick(world.advance())] == ["gpu_lost"]
    world.nodes.clear()
    assert structural.tick(world.advance()) == []
