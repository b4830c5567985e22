"""Hostile senders against a real worker: each is refused with a word, counted, and harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import time

import grpc
import pytest
from integration.ingest_host import Host, recorded, until
from integration.wire_client import SECOND, Wire, batch, block, channel, dictionary, event, gap

from gpuvigil_protos.codec import SCHEMA_VERSION, pack_float32
from gpuvigil_protos.v1 import stream_pb2 as pb

CENTURY = 100 * 366 * 86_400 * SECOND
HOSTILE = ["\x1b[31mred", "<img src=x onerror=alert(1)>", "two\nlines", "n" * 65536, "", "a b", "../../etc"]
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("collector")) as host:
        yield host


@pytest.fixture
async def dial(host):
    opened = channel(host.address)
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
async def healthy(host, dial, request):
    """A healthy node streams beside every attack: it must not lose or wait."""
    wire = Wire(dial, node=f"healthy-{abs(hash(request.node.name))}")
    await wire.open()
    await wire.send(batch(1))
    yield
    started = time.monotonic()
    await wire.send(batch(2))
    await wire.until(lambda wire: wire.received.get(pb.CLASS_METRICS) == 2)
    assert time.monotonic() - started < 3
    await wire.until_durable(2)
    assert wire.refusals == []


async def refused_hello(dial: grpc.aio.Channel, **fields) -> tuple[Code, str]:
    wire = Wire(dial)
    with pytest.raises((ConnectionError, grpc.aio.AioRpcError)):
        await wire.open(**fields)
    return await wire.call.code(), await wire.call.details()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, Code.FAILED_PRECONDITION),
        ({"schema_version": 0}, Code.FAILED_PRECONDITION),
        ({"role": 0}, Code.INVALID_ARGUMENT),
        ({"role": 99}, Code.INVALID_ARGUMENT),
        ({"sent_ns": 0}, Code.INVALID_ARGUMENT),
        ({"inventory": pb.Inventory(gpus=[pb.Gpu()] * 1025)}, Code.INVALID_ARGUMENT),
        *(({"node": text}, Code.INVALID_ARGUMENT) for text in HOSTILE),
        *(({"boot_id": text}, Code.INVALID_ARGUMENT) for text in HOSTILE if text != "../../etc"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_bad_hello_ends_the_stream_with_a_clear_word(dial, fields, code):
    got, detail = await refused_hello(dial, **fields)
    assert got is code
    assert "expected" in detail
    assert detail.isprintable()
    assert len(detail) < 300


async def test_no_hello_first_is_refused(host, dial):
    wire = Wire(dial)
    await wire.open()
    other = dial.stream_stream(
        "/gpuvigil_protos.v1.TelemetryService/Stream",
        request_serializer=pb.StreamRequest.SerializeToString,
        response_deserializer=pb.StreamResponse.FromString,
    )(timeout=30)
    await other.write(pb.StreamRequest(batch=batch(1)))
    assert await other.code() is Code.INVALID_ARGUMENT


def spoiled(sequence: int, **changes) -> pb.Batch:
    made = batch(sequence)
    for name, value in changes.items():
        setattr(made.blocks[0] if name == "values" else made, name, value)
    return made


async def test_poison_among_good_batches_is_refused_alone_and_blocks_nobody(host, dial):
    now = time.time_ns()
    poison = {
        2: (spoiled(2, values=b"\0" * 11), "bad_length"),
        3: (batch(3, [block([1, 2, 3], group=9)]), "unknown_series"),
        4: (spoiled(4, crc=1), "bad_crc"),
        5: (batch(5, [block([1, 2, 3], tick_ns=[now - CENTURY])]), "bad_time"),
        6: (batch(6, [block([1, 2, 3], tick_ns=[now + CENTURY])]), "bad_time"),
        7: (batch(7, version=9), "unknown_series"),
        8: (batch(8, gaps=[gap(5, 4)]), "bad_length"),
        9: (batch(9, gaps=[gap(100, 100, reason="x\ny")]), "bad_text"),
    }
    wire = Wire(dial, node="poison")
    await wire.open()
    for n in range(1, 21):
        await wire.send(poison[n][0] if n in poison else batch(n))
    await wire.until_durable(20)
    await wire.until(lambda wire: len(wire.refusals) == len(poison))
    assert {r.sequence: r.reason for r in wire.refusals} == {n: reason for n, (_, reason) in poison.items()}
    assert all(refusal.detail.isprintable() for refusal in wire.refusals)
    found = sorted(key[3] for key in recorded(host.recordings) if key[0] == "poison")
    assert found == [n for n in range(1, 21) if n not in poison]
    await until(lambda: sum(host.ledger("poison").get("refused", {}).values()) == len(poison), "the ledger")
    again = Wire(dial, node="poison")
    await again.open()
    assert again.durable[pb.CLASS_METRICS] == 20


async def test_odd_numbers_are_quarantined_one_by_one(host, dial):
    wire = Wire(dial, node="odd")
    before = host.store.counters().get("quarantined_samples_total", 0)
    await wire.open()
    values = [float("nan"), 3e38, 0.5]
    made = block(values)
    made.values = pack_float32([values[0]]) + b"\x00\x00\x80\x7f" + pack_float32([0.5])
    await wire.send(batch(1, [block([1e30, -5, 0.5])]))
    await wire.send(batch(2, [made]))
    await wire.until_durable(2)
    await until(lambda: host.store.counters()["quarantined_samples_total"] - before == 3, "3 quarantined")
    snapshot = host.store.snapshot(time.time_ns())
    for metric in ("gpu_power_watts", "gpu_temperature_celsius"):
        latest = snapshot.latest(metric)
        value = dict(zip(latest.entities, latest.values, strict=True))["odd/gpu:GPU-0"]
        assert value != value, "an absurd value reached the ring"
    cpu = snapshot.latest("node_cpu_utilization_ratio")
    assert dict(zip(cpu.entities, cpu.values, strict=True))["odd/node"] == 0.5


@pytest.mark.parametrize("size", [(1 << 20) + 100, (2 << 20) + 100, 16 << 20])
async def test_over_a_mebibyte_is_refused(dial, size):
    wire = Wire(dial, node=f"large-{size}")
    await wire.open()
    large = batch(1, [pb.Block(group=1, tick_ns=[time.time_ns()], values=b"\0" * size)])
    await wire.send(large)
    if size < 2 << 20:
        await wire.until(lambda wire: wire.refusals)
        assert wire.refusals[0].reason == "too_large"
    else:
        assert (await wire.status())[0] is Code.RESOURCE_EXHAUSTED


async def test_a_compressed_bomb_is_not_unpacked(host):
    bomb = channel(host.address)
    call = bomb.stream_stream("/gpuvigil_protos.v1.TelemetryService/Stream")(
        compression=grpc.Compression.Gzip, timeout=30
    )
    wire = pb.StreamRequest(batch=pb.Batch(blocks=[pb.Block(values=b"\0" * (256 << 20))])).SerializeToString()
    assert len(gzip.compress(wire, 1)) < 2 << 20
    await _write_quietly(call, wire)
    assert await _code_of(call) is not Code.OK
    await bomb.close()
    assert _peak_kib(host.ingest.pids[0]) < 400 << 10


def _peak_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_names_refuse_the_dictionary_and_its_batches(host, dial, text):
    wire = Wire(dial, node="names", boot_id=f"boot-{HOSTILE.index(text)}", role=pb.ROLE_BACKLOG)
    await wire.open(dictionary=dictionary(fast=(("gpu_power_watts", text),)))
    await wire.send(batch(1, [block([1])]))
    await wire.until(lambda wire: wire.refusals)
    assert wire.refusals[0].reason == "bad_text"
    assert wire.refusals[0].detail.isprintable()
    assert not any(text in entity for entity in host.store.index("gpu_power_watts").entities if text)


async def test_a_series_explosion_is_refused_and_the_rest_unharmed(host, dial):
    wire = Wire(dial, node="explosion")
    await wire.open(dictionary=dictionary(fast=tuple(("node_load1", f"disk:{n}") for n in range(5001))))
    await wire.send(batch(1, [block([1.0] * 5001)]))
    await wire.until(lambda wire: wire.refusals)
    assert wire.refusals[0].reason == "too_many_series"
    await wire.send(dictionary(2))
    await wire.send(batch(2, version=2))
    await wire.until_durable(2)
    assert len(wire.refusals) == 1


async def test_bad_events_are_refused_and_good_ones_arrive_cleaned(host, dial):
    wire = Wire(dial, node="events")
    await wire.open()
    bad = [event(1, entity="<b>"), event(2, text="x" * 65536), event(3, time_ns=1), event(4, kind=0),
           event(5, fields={"a b": "c"})]  # fmt: skip
    for made in [*bad, event(6, text="NVRM: \x1b[31mXid\nforged=1 <b>", fields={"pci": "\x07"})]:
        await wire.send(made)
    await wire.until_durable(6, pb.CLASS_EVENTS)
    await wire.until(lambda wire: len(wire.refusals) == 5)
    assert [refusal.reason for refusal in wire.refusals] == [
        "bad_text",
        "bad_text",
        "bad_time",
        "bad_text",
        "bad_text",
    ]
    mine = [fact for fact in host.store.snapshot(time.time_ns()).events if fact.node == "events"]
    assert [fact.text for fact in mine] == [r"NVRM: \x1b[31mXid\nforged=1 <b>"]
    assert mine[0].fields == {"pci": r"\x07"}


async def test_another_sender_cannot_take_a_live_nodes_name(host, dial):
    wire = Wire(dial, node="claimed")
    await wire.open()
    await wire.send(batch(1))
    code, detail = await refused_hello(dial, node="claimed", boot_id="another")
    assert code is Code.ALREADY_EXISTS
    assert "claimed" in detail
    await wire.send(batch(2))
    await wire.until_durable(2)
    assert await host.counter("rejected_streams_total:duplicate_node", 1)


async def test_the_same_agent_may_come_back_before_its_old_stream_is_noticed(dial):
    old = Wire(dial, node="comeback")
    await old.open()
    new = Wire(dial, node="comeback")
    await new.open()
    await new.send(batch(1))
    await new.until_durable(1)
    assert (await old.status())[0] is Code.UNAVAILABLE


async def test_an_identity_cannot_change_in_mid_stream(dial):
    wire = Wire(dial, node="honest")
    await wire.open()
    wire.node = "victim"
    await wire.send_hello(pb.Inventory())
    assert (await wire.status())[0] is Code.PERMISSION_DENIED


async def test_holes_without_end_are_bounded(host, dial):
    wire = Wire(dial, node="holes")
    await wire.open()
    with pytest.raises((ConnectionError, grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        for n in range(2, 12_000, 2):
            await wire.send(batch(n, []))
        await wire.until_durable(12_000)
    assert await host.counter("rejected_streams_total:too_many_holes", 1) == 1


async def test_random_bytes_never_crash_a_worker(host, dial):
    rng = random.Random(7)
    good = pb.StreamRequest(hello=pb.Hello(schema_version=SCHEMA_VERSION, node="fuzz", boot_id="b",
                                           role=1, sent_ns=time.time_ns())).SerializeToString()  # fmt: skip
    pid = host.ingest.pids[0]
    codes = set()
    for _ in range(150):
        call = dial.stream_stream("/gpuvigil_protos.v1.TelemetryService/Stream")(timeout=5)
        await call.write(good)
        for _ in range(rng.randint(1, 4)):
            made = bytearray(pb.StreamRequest(batch=batch(rng.randint(1, 99))).SerializeToString())
            for _ in range(rng.randint(1, 6)):
                made[rng.randrange(len(made))] = rng.randrange(256)
            await _write_quietly(call, bytes(made))
        await _write_quietly(call, rng.randbytes(rng.randint(1, 200)))
        code = await _code_of(call)
        if await call.details() != "Internal error from Core":  # our own side: it wrote after the end
            codes.add(code)
    assert codes <= {Code.OK, Code.INVALID_ARGUMENT, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED}
    assert host.ingest.pids == [pid]


async def _write_quietly(call: grpc.aio.StreamStreamCall, data: bytes) -> None:
    try:
        await call.write(data)
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        return


async def _code_of(call: grpc.aio.StreamStreamCall) -> Code:
    """Read what is still to be read, without which a status never comes."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()
