"""kill -9 of the ingest at named points and at random instants: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest
from integration.failing_worker import SCRIPT
from integration.ingest_host import QUICK, Host, counting, until
from integration.kill_oracle import Sender, judge
from integration.wire_client import Wire, batch, channel
from msgspec.structs import replace

from gpuvigil_collector.ingest.hooks import MERGE_POINTS, POINTS
from gpuvigil_protos.settings import Seconds

MERGING = replace(QUICK, recordings=replace(QUICK.recordings, merge_after=Seconds(0.5)))


@asynccontextmanager
async def sending(host: Host, nodes: int = 3):
    """Some nodes that send all the while; at the end all they sent is durable."""
    senders = [Sender(f"n{n}") for n in range(nodes)]
    tasks = [asyncio.create_task(sender.run(host.address)) for sender in senders]
    try:
        yield senders
        for sender in senders:
            sender.stopping = True
        async with asyncio.timeout(40):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def command(*arguments: str) -> Sequence[str]:
    return [sys.executable, str(SCRIPT), *arguments]


@pytest.mark.parametrize("hits", [2, 9])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_named_point(tmp_path, point, hits):
    marker = tmp_path / "killed"
    host = Host(tmp_path / "state", QUICK, command("kill", point, str(hits), str(marker)))
    with host:
        async with sending(host) as senders:
            await until(marker.exists, f"the kill at {point}", 30)
            await until(lambda: host.ingest.restarts == 1 and host.ingest.pids, "a new worker", 30)
            after = senders[0].durable["metrics"]
            await until(lambda: senders[0].durable["metrics"] > after + 20, "more batches durable", 30)
        verdict = judge(senders, host.recordings)
    assert verdict.acknowledged > 60
    assert verdict.clean, verdict
    assert sum(sender.reconnects for sender in senders) >= 3


@pytest.mark.parametrize("hits", [1, 4])
@pytest.mark.parametrize("point", MERGE_POINTS)
async def test_killed_in_the_middle_of_a_merge(tmp_path, point, hits):
    marker = tmp_path / "killed"
    host = Host(tmp_path / "state", MERGING, command("kill", point, str(hits), str(marker)))
    with host:
        async with sending(host) as senders:
            await until(marker.exists, f"the kill at {point}", 30)
            await until(lambda: host.ingest.restarts == 1 and host.ingest.pids, "a new worker", 30)
            await host.counter("merges_total", 3)
        verdict = judge(senders, host.recordings)
    assert verdict.acknowledged > 60
    assert verdict.clean, verdict
    files = [path for kind in ("metrics", "events") for path in counting(host.recordings, kind)]
    assert sorted(host.recordings.glob("*.parquet*")) == sorted(files), "nothing superseded is left"


async def _progress(sender: Sender) -> None:
    before = sender.durable["metrics"]
    await until(lambda: sender.durable["metrics"] > before, "progress", 30)


async def test_killed_at_random_instants(tmp_path):
    rng = random.Random(os.environ.get("GPUVIGIL_SEED", "9"))
    hits = 0
    with Host(tmp_path) as host:
        async with sending(host) as senders:
            for kill in range(5):
                await _progress(senders[0])
                await asyncio.sleep(rng.uniform(0, 0.4))
                hits += any(sender.in_flight for sender in senders)
                await until(lambda: host.ingest.pids, "a worker to kill", 30)
                os.kill(host.ingest.pids[0], signal.SIGKILL)
                await until(lambda kill=kill: host.ingest.restarts > kill, "the worker's death noticed", 30)
        verdict = judge(senders, host.recordings)
    assert hits >= 3
    assert verdict.clean, verdict


async def test_an_acknowledged_batch_is_lost_by_the_mutant_and_the_oracle_sees_it(tmp_path):
    with Host(tmp_path, QUICK, command("lose", "-", "0", "-")) as host:
        sender = Sender("n0")
        async with channel(host.address) as dial:
            wire = Wire(dial, node="n0")
            await wire.open()
            for n in range(1, 1101):
                sender.sent["metrics", n] = batch(n)
                await wire.send(sender.sent["metrics", n])
            await wire.until_durable(1100)
            sender.durable["metrics"] = 1100
        verdict = judge([sender], host.recordings)
    assert [key[3] for key in verdict.lost] == [1000]
    assert not verdict.clean


async def test_a_doubled_row_is_seen_by_the_oracle(tmp_path):
    with Host(tmp_path) as host:
        async with sending(host, nodes=1) as senders:
            await until(lambda: senders[0].durable["metrics"] > 5, "some batches")
    segment = min(host.recordings.glob("metrics-*.parquet"))
    segment.with_name("metrics-00-999999999999.parquet").write_bytes(segment.read_bytes())
    verdict = judge(senders, host.recordings)
    assert verdict.doubled
    assert not verdict.lost
