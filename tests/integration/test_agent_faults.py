"""The agent over driver faults: absence stays absence, host readings keep coming, the end is in time."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from integration.agent_collector import TestCollector, serving, until
from integration.agent_process import AgentProcess, ended, make_agent  # noqa: F401 - a fixture

from gpuvigil_protos.v1 import stream_pb2 as pb

LIVE_S = 40


def scenario(folder: Path, *faults: str) -> str:
    file = folder / "scenario.toml"
    file.write_text(
        'version = 1\ntitle = "test"\n' + "".join(f"[[fault]]\nnode = 'n1'\n{f}\n" for f in faults)
    )
    return f'scenario = "{file}"\n'


async def test_a_lost_gpu_is_told_at_once_and_leaves_no_stale_value(make, tmp_path: Path) -> None:
    collector = TestCollector()
    async with serving(collector) as port:
        agent: AgentProcess = make(port)
        with agent.config.open("a") as config:
            config.write(scenario(tmp_path, 'kind = "gpu_lost_xid79"\ngpu = 0\nat = "6s"'))
        agent.start()
        await until(lambda: agent.metric("gpuvigil_gpu_power_watts{") > 0, LIVE_S, "the GPU is read")
        await until(
            lambda: any(e.kind == pb.EVENT_KIND_XID and e.code == 79 for e in collector.events),
            LIVE_S,
            "Xid 79",
        )
        xid = next(e for e in collector.events if e.code == 79)
        assert xid.entity.startswith("gpu:GPU-") and xid.sent_ns - xid.time_ns < 3_000_000_000
        await until(lambda: agent.metric("gpuvigil_gpu_power_watts{") == -1, LIVE_S, "no stale value")
        assert agent.metric("gpuvigil_node_load1{") >= 0, "host readings go on"
        codes = {e.code for e in collector.events if e.kind == pb.EVENT_KIND_XID}
        assert agent.metric("gpuvigil_xid_total{") == len(codes), (
            "what driver and kernel log tell counts once"
        )
        told = lambda: any(not gpu.seen for hello in collector.hellos for gpu in hello.inventory.gpus)  # noqa: E731
        await until(told, LIVE_S, "a fresh Hello with the loss")


async def test_a_hung_driver_costs_no_host_tick_and_sigterm_still_ends_in_time(make, tmp_path: Path) -> None:
    collector = TestCollector()
    async with serving(collector) as port:
        agent: AgentProcess = make(port)
        with agent.config.open("a") as config:
            config.write(scenario(tmp_path, 'kind = "driver_hang"\nat = "4s"'))
        process = agent.start()
        stuck = lambda: any(e.kind == pb.EVENT_KIND_DRIVER_STUCK for e in collector.events)  # noqa: E731
        await until(stuck, LIVE_S, "driver stuck")
        before, started = agent.metric("gpuvigil_agent_ticks_total"), time.monotonic()
        await until(lambda: agent.metric("gpuvigil_agent_ticks_total") >= before + 4, LIVE_S, "ticks go on")
        assert time.monotonic() - started < 12
        assert agent.metric("gpuvigil_gpu_power_watts{") == -1, "nothing stale"
        assert agent.metric('gpuvigil_agent_sampler_up{node="n1",sampler="host_cpu"') == 1
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await ended(process, 10) == 0
        assert time.monotonic() - asked < 10
