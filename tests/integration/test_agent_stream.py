"""The agent's process against a real gRPC server that acks, eats acks, refuses, dies, and stalls."""

from __future__ import annotations

import signal

import grpc
from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import ended, make_agent  # noqa: F401 - a fixture
from integration.stack import free_port

from gpuvigil_protos.v1 import stream_pb2 as pb

LIVE_S = 30
DROPPED = "gpuvigil_agent_ledger_dropped_sequences_total"


async def test_a_batch_a_second_arrives_is_acked_and_leaves_the_spool(make) -> None:
    collector = TestCollector()
    async with serving(collector) as port:
        agent = make(port)
        agent.start()
        await until(lambda: collector.rows() >= 4, LIVE_S, "four batches")
        await until(
            lambda: agent.metric('gpuvigil_agent_ledger_durable_sequences_total{class="metrics"') >= 3,
            LIVE_S,
            "durable",
        )
        assert agent.metric('gpuvigil_agent_ledger_spooled_sequences{class="metrics"') <= 2
        assert agent.balanced()
        assert collector.holes() == []
        assert collector.hellos[0].node == "n1"
        names = {s.metric for d in collector.dictionaries for g in d.groups for s in g.series}
        assert {"gpu_temperature_celsius", "node_load1"} <= names
        assert any(gpu.seen for hello in collector.hellos for gpu in hello.inventory.gpus), (
            "inventory is told"
        )
        agent.process.send_signal(signal.SIGTERM)
        assert await ended(agent.process, 10) == 0


async def test_collector_comes_late_and_gets_everything_with_live_data_fresh(make) -> None:
    collector = TestCollector()
    port = free_port()
    agent = make(port)
    agent.start()
    await until(
        lambda: agent.metric('gpuvigil_agent_ledger_spooled_sequences{class="metrics"') >= 6,
        LIVE_S,
        "spooled",
    )
    assert agent.metric("gpuvigil_agent_stream_up{") == 0
    async with serving(collector, port):
        await until(lambda: collector.rows() >= 8 and not collector.holes(), LIVE_S, "backlog and live")
        assert len(collector.backlog_lag_s) >= 3
        assert max(collector.live_lag_s) < 2, "live data is not queued behind the backlog"
        assert all(taken.duplicates == 0 for taken in collector.of())


async def test_eaten_acks_and_a_restarted_collector_make_no_duplicate_row(make) -> None:
    collector = TestCollector()
    collector.eat_acks = True
    port = free_port()
    agent = make(port)
    async with serving(collector, port):
        agent.start()
        await until(lambda: collector.rows() >= 4, LIVE_S, "batches")
    before = collector.rows()
    async with serving(collector, port):
        collector.eat_acks = False
        await until(lambda: collector.rows() >= before + 3 and not collector.holes(), LIVE_S, "resume")
        taken = collector.of()[0]
        assert taken.changed == [], "a sequence came twice with different content"
        assert taken.duplicates == 0, "the Welcome's watermark was not used"
    assert len(collector.of()) == 1, "one boot id"


async def test_refused_batch_goes_to_the_dead_letters_and_holds_nothing_up(make) -> None:
    collector = TestCollector()
    collector.refuse = {3: "unknown_series"}
    async with serving(collector) as port:
        agent = make(port)
        agent.start()
        await until(lambda: collector.rows() >= 6, LIVE_S, "later batches")
        dropped = f'{DROPPED}{{class="metrics",node="n1",reason="refused_unknown_series"}}'
        await until(lambda: agent.metric(dropped) == 1, LIVE_S, "dead letter")
        assert collector.of()[0].order.count(3) == 0
        assert agent.balanced()


async def test_invalid_argument_status_finds_the_one_batch_and_never_sends_it_again(make) -> None:
    collector = TestCollector()
    aborts: list[int] = []

    def abort(message: pb.StreamRequest) -> tuple[grpc.StatusCode, str] | None:
        if message.WhichOneof("message") == "batch" and message.batch.sequence == 3:
            aborts.append(3)
            return grpc.StatusCode.INVALID_ARGUMENT, "poison"
        return None

    collector.abort = abort
    async with serving(collector) as port:
        agent = make(port)
        agent.start()
        buried = f'{DROPPED}{{class="metrics",node="n1",reason="refused_invalid_argument"}}'
        await until(lambda: agent.metric(buried) == 1, LIVE_S, "dead letter")
        sent = len(aborts)
        await until(lambda: collector.rows() >= 8, LIVE_S, "others delivered")
        assert len(aborts) == sent == 2, "once live, once alone, never again"


async def test_unknown_commands_are_answered_and_settings_obeyed(make) -> None:
    collector = TestCollector()
    collector.down = [
        pb.StreamResponse(command=pb.Command(id="c1", verb="reboot\x1b[31m")),
        pb.StreamResponse(setting=pb.Setting(flush_interval_ns=3_000_000_000)),
    ]
    async with serving(collector) as port:
        agent = make(port)
        agent.start()
        await until(lambda: collector.results, LIVE_S, "an answer")
        assert (collector.results[0].id, collector.results[0].accepted) == ("c1", False)
        await until(
            lambda: any(_ticks(content) >= 2 for content in collector.of()[0].rows.values()),
            LIVE_S,
            "3 s flush",
        )
        assert "\x1b" not in agent.log


def _ticks(content: bytes) -> int:
    return max((len(block.tick_ns) for block in pb.Batch.FromString(content).blocks), default=0)


async def test_gpus_that_appear_while_the_welcome_is_awaited_are_told(make) -> None:
    collector = TestCollector()
    collector.welcome_delay_s = 4.0
    async with serving(collector) as port:
        make(port).start()
        await until(lambda: collector.hellos, LIVE_S, "a first Hello")
        assert not collector.hellos[0].inventory.gpus, "the driver was up before the stream: nothing is shown"
        live = lambda: [h for h in collector.hellos if h.role == pb.ROLE_LIVE]  # noqa: E731
        await until(lambda: any(h.inventory.gpus for h in live()), LIVE_S, "the GPUs")
        collector.welcome_delay_s = 0.0
