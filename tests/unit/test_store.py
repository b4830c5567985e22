"""The store as detectors see it, and what it still knows after a restart."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import numpy as np
import pytest
from integration.wire_client import FAST, SLOW, dictionary

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.brain_link import series_of
from gpuvigil_collector.ingest.dictionary import parse
from gpuvigil_collector.ingest.ring import SHAPES, Plane, create
from gpuvigil_collector.ingest.rows import Rows
from gpuvigil_collector.store import Store
from gpuvigil_collector.store_registry import Registry

NS = 1_000_000_000
NOW_S = 1_800_000_000
NOW = NOW_S * NS


class Worker:
    """What a worker does to the store, without the process."""

    def __init__(self, store: Store, number: int = 0) -> None:
        self.store, self.number = store, number
        fds = [create("test", shape, 64) for shape in SHAPES]
        self.planes = tuple(Plane(fd, shape, 64) for fd, shape in zip(fds, SHAPES, strict=True))
        for fd in fds:
            os.close(fd)
        self.rows = Rows(self.planes)
        self.known = {}

    def up(self, node: str, gpus=(("GPU-0", 0, "H100", "0000:01:00.0", True),)) -> None:
        hello = frames.NodeUp(node, "boot-1", NOW, 5, "1.0", "nvml", "", "580", list(gpus))
        self.store.feed(self.number, hello, self.planes)
        parsed = parse(dictionary(), 100)
        self.rows.assign(node, parsed, 0)
        self.known[node] = parsed
        self.store.feed(self.number, series_of(node, parsed), self.planes)

    def tick(self, node: str, second: int, values: list[float], group: int = FAST) -> None:
        columns = self.known[node].groups[group]
        self.planes[columns.plane].write(second, second * NS, columns.rows, np.array(values, np.float32))

    def event(self, sequence: int, node: str = "n1") -> None:
        event = frames.Event(node, "boot-1", sequence, NOW, "xid", "driver", "gpu:GPU-0", 79, "", {}, False)
        self.store.feed(self.number, event, self.planes)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    yield made
    made.close()


def test_a_window_ends_at_the_newest_settled_second(store):
    worker = Worker(store)
    worker.up("n1")
    worker.up("n2")
    for second in range(NOW_S - 5, NOW_S + 1):
        worker.tick("n1", second, [second - NOW_S + 10, 100, 0.5])
    window = store.snapshot(NOW + NS // 2).window("gpu_temperature_celsius", 3)
    assert window.entities == ("n1/gpu:GPU-0", "n2/gpu:GPU-0")
    assert window.time_ns.tolist() == [(NOW_S - n) * NS for n in (4, 3, 2)]
    assert window.values.shape == (1, 2, 3)
    assert window.values[0, 0].tolist() == [6, 7, 8]
    assert np.isnan(window.values[0, 1]).all()
    assert window.learnable.shape == (2, 3)
    assert window.learnable.all()


def test_latest_has_its_age_and_never_is_infinite(store):
    worker = Worker(store)
    worker.up("n1")
    worker.up("n2")
    worker.tick("n1", NOW_S - 40, [7], group=SLOW)
    latest = store.snapshot(NOW).latest("gpu_ecc_corrected_volatile_total")
    assert latest.entities == ("n1/gpu:GPU-0", "n2/gpu:GPU-0")
    assert latest.values[0] == 7
    assert latest.age_s.tolist() == [40, np.inf]
    slow = store.snapshot(NOW).window("gpu_ecc_corrected_volatile_total", 60)
    assert np.nansum(slow.values) == 7


def test_an_unknown_metric_is_an_empty_window(store):
    snapshot = store.snapshot(NOW)
    assert snapshot.window("node_load1", 10).values.shape == (1, 0, 10)
    assert snapshot.latest("node_load1").entities == ()


def test_a_window_longer_than_the_ring_is_cut_to_it(store):
    assert store.snapshot(NOW).window("node_load1", 10_000).time_ns.shape == (300,)


def test_nodes_of_two_workers_are_one_fleet(store):
    workers = [Worker(store, number) for number in range(2)]
    for number, worker in enumerate(workers):
        worker.up(f"n{number}")
        worker.tick(f"n{number}", NOW_S - 2, [30 + number, 1, 1])
    window = store.snapshot(NOW).window("gpu_temperature_celsius", 1)
    assert dict(zip(window.entities, window.values[0, :, 0], strict=True)) == {
        "n0/gpu:GPU-0": 30, "n1/gpu:GPU-0": 31,
    }  # fmt: skip


def test_events_are_drained_once_and_a_redelivered_one_is_not_new(store):
    worker = Worker(store)
    worker.event(1)
    worker.event(2)
    worker.event(1)
    assert len(store.snapshot(NOW).events) == 2
    worker.event(2)
    assert store.snapshot(NOW).events == ()


async def test_an_event_wakes_the_brain_at_once(store):
    worker = Worker(store)
    assert not store.wait_events(0.01)
    timer = threading.Timer(0.05, worker.event, (1,))
    timer.start()
    started = time.monotonic()
    assert await store.event_arrived(10)
    assert time.monotonic() - started < 5
    timer.join()


def test_a_node_that_left_stays_known_over_a_restart_of_the_collector(tmp_path):
    first = Store(tmp_path)
    worker = Worker(first)
    worker.up("n1", gpus=[("GPU-0", 0, "H100", "x", True), ("GPU-1", 1, "H100", "y", False)])
    worker.up("n2")
    first.feed(0, frames.NodeDown("n2", NOW), worker.planes)
    first.snapshot(NOW)
    assert [fact.connected for fact in first.snapshot(NOW).nodes.values()] == [True, False]
    second = Store(tmp_path)  # the first one was killed: it never closed
    nodes = second.snapshot(NOW).nodes
    assert {node: fact.connected for node, fact in nodes.items()} == {"n1": False, "n2": False}
    assert [(gpu.uuid, gpu.seen) for gpu in nodes["n1"].gpus] == [("GPU-0", True), ("GPU-1", False)]
    assert nodes["n1"].first_seen_ns == NOW
    second.forget("n2")
    assert set(Store(tmp_path).snapshot(NOW).nodes) == {"n1"}


def test_a_broken_registry_is_set_aside_not_fatal(tmp_path):
    (tmp_path / "registry.sqlite").write_bytes(b"not a database" * 1000)
    assert Registry(tmp_path / "registry.sqlite").load() == {}
    assert (tmp_path / "registry.broken").exists()


def test_a_dead_worker_disconnects_its_nodes_and_keeps_its_totals(store):
    worker = Worker(store)
    worker.up("n1")
    store.feed(0, frames.Status({"batches_total": 5.0, "streams": 1.0}, [], {}), worker.planes)
    store.worker_ended(0, {"n1"})
    assert not store.snapshot(NOW).nodes["n1"].connected
    store.feed(0, frames.Status({"batches_total": 2.0, "streams": 3.0}, [], {}), worker.planes)
    assert store.counters()["batches_total"] == 7
    assert store.counters()["streams"] == 3


def test_the_ledger_has_the_apis_fields(store):
    row = frames.LedgerRow("n1", "boot-1", "metrics", 9, 7, 1, 2, {"bad_crc": 1})
    store.feed(0, frames.Status({}, [row], {"n1": (NOW, 3)}), ())
    assert store.ledger() == [
        {"node": "n1", "boot_id": "boot-1", "class": "metrics", "received": 9, "durable": 7,
         "duplicates": 1, "gap_sequences": 2, "refused": {"bad_crc": 1}}
    ]  # fmt: skip


def test_frames_survive_any_cut():
    messages = [frames.Ready(7), frames.NodeDown("n1", 5), frames.Status({"a": 1.0}, [], {})]
    stream = b"".join(frames.encode(message) for message in messages)
    for cut in range(1, len(stream)):
        reader = frames.FrameReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == messages


def test_a_registry_that_cannot_be_written_is_counted_and_written_later(tmp_path):
    store = Store(tmp_path)
    Worker(store).up("n1")
    holder = sqlite3.connect(tmp_path / "registry.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store._registry._db.execute("PRAGMA busy_timeout=10")
    assert "n1" in store.snapshot(NOW).nodes
    assert store.counters()["registry_failures_total"] == 1
    holder.execute("ROLLBACK")
    store.snapshot(NOW + NS)
    assert list(Registry(tmp_path / "registry.sqlite").load()) == ["n1"]
    store.close()
