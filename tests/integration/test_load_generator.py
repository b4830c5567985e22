"""The benchmark's generator is no fake: a real ingest takes its streams and records exactly what it sent."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from integration.ingest_host import Host, recorded, until

from gpuvigil_protos.codec import pack_float32
from gpuvigil_protos.v1 import stream_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import load_generator

SERIES = [("gpu_temperature_celsius", "gpu:GPU-0"), ("node_cpu_utilization_ratio", "node")]
PROFILE = {
    "gpus": [("GPU-0", 0, "H100", "0000:01:00.0")],
    "groups": [{"id": 1, "period_ns": 10**9, "series": SERIES,
                "rows": [base64.b64encode(pack_float32([50.0 + n, 0.5])).decode() for n in range(3)]}],
}  # fmt: skip


@pytest.mark.parametrize("sequence", [1, 127, 128, 20_000, 1 << 39])
def test_a_patched_message_is_the_message_built_whole(sequence: int) -> None:
    shared = load_generator.Payload(PROFILE, 0).make(4, 123_000)
    request = pb.StreamRequest.FromString(load_generator.with_sequence(shared, sequence))
    expected = pb.Batch.FromString(shared)
    expected.sequence = sequence
    assert request.batch == expected


async def test_all_that_it_sends_is_acknowledged_and_recorded(tmp_path) -> None:
    with Host(tmp_path) as host:
        totals = load_generator.Totals()
        totals.measuring = True
        nodes = [load_generator.Node(number, PROFILE, totals) for number in range(3)]
        await asyncio.gather(*(node.connect(host.address) for node in nodes))
        payload = load_generator.Payload(PROFILE, 0)
        crcs = Counter()
        for tick in range(200):
            shared = payload.make(tick, time.time_ns())
            for node in nodes:
                node.send(shared, 0.0)
                crcs[node.name, pb.Batch.FromString(shared).crc] += 1
            await asyncio.sleep(0.005)
        await until(lambda: totals.acked == 600, "every batch acknowledged")
        await until(lambda: sum(recorded(host.recordings).values()) == 600, "every batch recorded")
        found = Counter()
        for (name, _, _, _, crc), count in recorded(host.recordings).items():
            found[name, crc] += count
        for node in nodes:
            node.close()
        await asyncio.sleep(0.1)
    assert found == crcs
    assert (totals.lost_streams, totals.refused, totals.errors) == (0, Counter(), Counter())


async def test_a_stream_that_the_collector_ends_is_told_with_its_status(tmp_path) -> None:
    with Host(tmp_path) as host:
        totals = load_generator.Totals()
        node = load_generator.Node(1, PROFILE, totals)
        await node.connect(host.address)
        node._wire.send(b"\xff\xff no message of ours")
        await until(lambda: totals.lost_streams == 1, "the end is seen")
    [status] = totals.errors
    assert status.startswith("status 3"), "INVALID_ARGUMENT"
