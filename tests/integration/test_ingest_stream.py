"""The stream against real worker processes: watermarks, dedup, gaps, restarts, events, the ring."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc
import pytest
from integration.ingest_host import QUICK, Host, recorded, until
from integration.wire_client import SECOND, Wire, batch, block, channel, dictionary, event, gap
from msgspec.structs import replace

from gpuvigil_collector.ingest.settings import IngestConfig
from gpuvigil_collector.ingest.supervisor import Ingest, IngestError
from gpuvigil_collector.store import Store
from gpuvigil_protos.settings import Seconds
from gpuvigil_protos.v1 import stream_pb2 as pb


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("collector")) as host:
        yield host


@pytest.fixture
async def dial(host):
    opened = channel(host.address)
    yield opened
    await opened.close()


async def test_batches_and_events_become_durable_and_read_back(host, dial):
    wire = Wire(dial, node="plain")
    welcome = await wire.open()
    assert welcome.echo_ns > 0
    assert abs(welcome.collector_ns - time.time_ns()) < 10 * SECOND
    sent = [batch(n) for n in range(1, 6)]
    for made in sent:
        await wire.send(made)
    await wire.send(event(1))
    await wire.until_durable(5)
    await wire.until_durable(1, pb.CLASS_EVENTS)
    found = {key: n for key, n in recorded(host.recordings).items() if key[0] == "plain"}
    expected = {("plain", "boot-1", "metrics", b.sequence, b.crc): 1 for b in sent}
    assert found == {**expected, ("plain", "boot-1", "events", 1, 79): 1}


async def test_what_is_sent_is_in_the_ring_within_the_second(host, dial):
    wire = Wire(dial, node="ringed", inventory=pb.Inventory(gpus=[pb.Gpu(uuid="GPU-0", seen=True)]))
    await wire.open()
    await wire.send(batch(1, [block([77, 321, 0.25]), block([5], group=2)]))
    await wire.until(lambda wire: wire.received.get(pb.CLASS_METRICS) == 1)

    def latest(metric: str) -> dict:
        found = host.store.snapshot(time.time_ns()).latest(metric)
        return dict(zip(found.entities, found.values, strict=True))

    await until(lambda: latest("gpu_power_watts").get("ringed/gpu:GPU-0") == 321, "the newest power")
    assert latest("gpu_ecc_corrected_volatile_total")["ringed/gpu:GPU-0"] == 5
    node = host.store.snapshot(time.time_ns()).nodes["ringed"]
    assert node.connected
    assert [gpu.uuid for gpu in node.gpus] == ["GPU-0"]
    await wire.send_hello(pb.Inventory(gpus=[pb.Gpu(uuid="GPU-0", seen=False)]))
    nodes = lambda: host.store.snapshot(time.time_ns()).nodes["ringed"]  # noqa: E731
    await until(lambda: not nodes().gpus[0].seen, "the new inventory")
    await wire.close()
    await until(lambda: not nodes().connected, "the node left")


async def test_what_comes_again_is_counted_not_recorded(host, dial):
    wire = Wire(dial, node="again")
    await wire.open()
    made = batch(1)
    for _ in range(5):
        await wire.send(made)
        await wire.send(event(1))
    await wire.until_durable(1)
    await until(lambda: host.ledger("again").get("duplicates") == 4, "4 duplicates")
    await until(lambda: host.ledger("again", "events").get("duplicates") == 4, "4 duplicate events")
    rows = [n for key, n in recorded(host.recordings).items() if key[0] == "again"]
    assert rows == [1, 1]


async def test_a_gap_lets_the_watermark_pass_and_is_counted(host, dial):
    wire = Wire(dial, node="gappy")
    await wire.open()
    await wire.send(batch(10))
    await wire.until(lambda wire: wire.acks > 0)
    assert wire.received.get(pb.CLASS_METRICS) == 0
    await wire.send(batch(11, gaps=[gap(1, 9), gap(1, 3, pb.CLASS_EVENTS)]))
    await wire.until_durable(11)
    await wire.until_durable(3, pb.CLASS_EVENTS)
    await until(lambda: host.ledger("gappy").get("gap_sequences") == 9, "9 sequences in the gap")


async def test_live_and_backlog_are_two_streams_of_one_sequence(host, dial):
    live = Wire(dial, node="both")
    await live.open()
    await live.send(batch(101))
    backlog = Wire(dial, node="both", role=pb.ROLE_BACKLOG)
    await backlog.open()
    old_tick = time.time_ns() - 3600 * SECOND
    for n in range(1, 101):
        await backlog.send(batch(n, [block([99, 999, 0.9], tick_ns=[old_tick + n * SECOND])]))
    await backlog.until_durable(101)
    found = host.store.snapshot(time.time_ns()).latest("gpu_power_watts")
    assert dict(zip(found.entities, found.values, strict=True))["both/gpu:GPU-0"] == 300


async def test_late_and_future_ticks_are_recorded_but_not_shown(host, dial):
    wire = Wire(dial, node="late")
    await wire.open()
    now = time.time_ns()
    await wire.send(batch(1, [block([11, 11, 0.11], tick_ns=[now - 30 * SECOND])]))
    await wire.send(batch(2, [block([12, 12, 0.12], tick_ns=[now + 30 * SECOND])]))
    await wire.until_durable(2)
    assert await host.counter("late_samples_total", 3) >= 3
    assert await host.counter("future_samples_total", 3) >= 3
    found = host.store.snapshot(time.time_ns()).latest("gpu_power_watts")
    assert not {11, 12} & set(found.values.tolist())


@pytest.mark.parametrize("shift_s", [-86400 * 365 * 50, -3600, 3600, 86400 * 365 * 50])
async def test_an_agent_with_a_wrong_clock_is_put_right(host, dial, shift_s):
    wire = Wire(dial, node=f"clock{shift_s}", clock_shift_ns=shift_s * SECOND)
    await wire.open()
    now = time.time_ns() + shift_s * SECOND
    await wire.send(batch(1, [block([44, 44, 0.44], tick_ns=[now])], sent_ns=now))
    await wire.send(event(1, time_ns=now, sent_ns=now))
    await wire.until_durable(1, pb.CLASS_EVENTS)
    node = f"clock{shift_s}"
    found = host.store.snapshot(time.time_ns())
    latest = found.latest("gpu_power_watts")
    assert dict(zip(latest.entities, latest.age_s, strict=True))[f"{node}/gpu:GPU-0"] < 10
    mine = [fact for fact in found.events if fact.node == node]
    assert all(abs(fact.time_ns - time.time_ns()) < 10 * SECOND for fact in mine)


async def test_a_new_dictionary_in_mid_stream_keeps_history(host, dial):
    wire = Wire(dial, node="plug")
    await wire.open()
    await wire.send(batch(1))
    await wire.send(dictionary(2, fast=(("gpu_power_watts", "gpu:GPU-0"), ("gpu_power_watts", "gpu:GPU-1"))))
    await wire.send(batch(2, [block([310, 100])], version=2))
    await wire.send(batch(3, [block([310, 100])], version=1))
    await wire.until_durable(3)
    await wire.until(lambda wire: wire.refusals)
    assert (wire.refusals[0].sequence, wire.refusals[0].reason) == (3, "unknown_series")
    entities = host.store.snapshot(time.time_ns()).latest("gpu_power_watts").entities
    assert {"plug/gpu:GPU-0", "plug/gpu:GPU-1"} <= set(entities)


async def test_after_a_restart_the_watermark_is_still_there(tmp_path):
    host = Host(tmp_path)
    with host:
        dial = channel(host.address)
        wire = Wire(dial)
        await wire.open()
        for n in range(1, 4):
            await wire.send(batch(n))
        await wire.until_durable(3)
        await dial.close()
    with host:
        dial = channel(host.address)
        wire = Wire(dial)
        await wire.open()
        assert wire.durable[pb.CLASS_METRICS] == 3
        await wire.send(batch(3))
        await wire.send(batch(4))
        await wire.until_durable(4)
        assert host.store.snapshot(time.time_ns()).nodes["n1"].connected
        await dial.close()
        assert set(recorded(host.recordings).values()) == {1}


async def test_a_dead_worker_comes_back_and_its_node_with_it(tmp_path):
    with Host(tmp_path) as host:
        dial = channel(host.address)
        wire = Wire(dial)
        await wire.open()
        await wire.send(batch(1))
        await wire.until_durable(1)
        os.kill(host.ingest.pids[0], signal.SIGKILL)
        await until(lambda: not host.store.snapshot(time.time_ns()).nodes["n1"].connected, "the node is gone")
        await until(lambda: host.ingest.restarts == 1 and host.ingest.pids, "a new worker")
        again = Wire(dial)
        await _open_until(again)
        assert again.durable[pb.CLASS_METRICS] == 1
        await again.send(batch(2))
        await again.until_durable(2)
        await dial.close()


async def _open_until(wire: Wire, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await wire.open()
            except (ConnectionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.1)


async def test_many_workers_have_each_node_once(tmp_path):
    with Host(tmp_path, replace(QUICK, workers=2)) as host:
        wires = []
        for n in range(8):
            wire = Wire(channel(host.address), node=f"n{n}")
            await _open_until(wire)
            await wire.send(batch(1))
            wires.append(wire)
        for wire in wires:
            await wire.until_durable(1)
            await wire.channel.close()
        await until(lambda: host.store.counters()["nodes_connected"] == 0, "all have left")
        for n in range(8):
            wire = Wire(channel(host.address), node=f"n{n}")
            await _open_until(wire)
            assert wire.durable[pb.CLASS_METRICS] == 1
            await wire.send(batch(1))
            await wire.send(batch(2))
            await wire.until_durable(2)
            await wire.channel.close()
        assert set(recorded(host.recordings).values()) == {1}
        assert len(recorded(host.recordings)) == 16


async def test_an_idle_stream_is_closed_to_be_tried_again(tmp_path):
    with Host(tmp_path, replace(QUICK, idle_timeout=Seconds(0.3))) as host:
        wire = Wire(channel(host.address))
        await wire.open()
        assert (await wire.status())[0] is grpc.StatusCode.UNAVAILABLE
        await wire.channel.close()


def test_a_port_in_use_is_a_clear_error(tmp_path):
    with Host(tmp_path / "a") as host:
        store = Store(tmp_path / "b")
        taken = replace(IngestConfig(), address=host.address)
        with pytest.raises(IngestError, match=rf"{host.address} cannot be listened on"):
            Ingest(taken, tmp_path / "b", store).start()
        store.close()
