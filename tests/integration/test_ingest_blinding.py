"""One node cannot blind the collector: absurd numbers are refused, and a worker never lives on half dead."""

from __future__ import annotations

import sys
import time

from integration.failing_worker import SCRIPT
from integration.ingest_host import Host, until
from integration.wire_client import Wire, batch, channel, gap

from gpuvigil_protos.v1 import stream_pb2 as pb

WIDEST = (1 << 40) - 1


async def test_gaps_without_end_are_refused_and_the_other_nodes_stay_visible(tmp_path):
    with Host(tmp_path) as host:
        dial = channel(host.address)
        good = Wire(dial, node="good")
        await good.open()
        for last in ((1 << 63) - 1, (1 << 64) - 1, WIDEST + 1):
            bad = Wire(dial, node=f"bad-{last}")
            await bad.open()
            await bad.send(batch(1, gaps=[gap(2, last)]))
            await bad.until(lambda wire: wire.refusals)
            assert bad.refusals[0].reason == "bad_length"
            await bad.close()
        asked_ns = time.time_ns()
        await good.send(batch(1))
        await until(lambda: host.store.snapshot(0).nodes["good"].last_seen_ns > asked_ns, "good is seen")
        assert host.ingest.restarts == 0
        await dial.close()


async def test_the_widest_gaps_of_many_nodes_overflow_no_counter(tmp_path):
    with Host(tmp_path) as host:
        dial = channel(host.address)
        for number in range(4):
            wide = Wire(dial, node=f"wide-{number}")
            await wide.open()
            await wide.send(batch(1, gaps=[gap(2, WIDEST)]))
            await wide.until(lambda wire: wire.durable.get(pb.CLASS_METRICS) == WIDEST)
            await wide.close()
        assert await host.counter("gap_sequences_total:spool_full", 4 * (WIDEST - 1)) < 2**53
        await dial.close()


async def test_reasons_that_a_sender_makes_up_are_one_counter(tmp_path):
    with Host(tmp_path) as host:
        dial = channel(host.address)
        wire = Wire(dial, node="inventive")
        await wire.open()
        made_up = [gap(2 + n, 2 + n, reason=f"reason_{n}") for n in range(200)]
        await wire.send(batch(1, gaps=[*made_up, gap(202, 202)]))
        await wire.until_durable(202)
        assert await host.counter("gap_sequences_total:other", 200) == 200
        told = {key for key in host.store.counters() if key.startswith("gap_sequences_total")}
        assert told == {"gap_sequences_total:other", "gap_sequences_total:spool_full"}
        await dial.close()


async def test_a_worker_whose_report_dies_ends_and_is_started_again(tmp_path):
    marker = tmp_path / "died"
    command = (sys.executable, str(SCRIPT), "mute", "-", "0", str(marker))
    with Host(tmp_path / "state", command=command) as host:
        await until(lambda: host.ingest.restarts == 1, "the half-dead worker ends")
        assert marker.exists()
        await until(lambda: "streams" in host.store.counters(), "the new worker reports")
