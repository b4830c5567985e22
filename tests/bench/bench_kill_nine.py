"""kill -9 of collector and agent, ten times each, and at every named point: what the oracle found.

usage: bench_kill_nine.py [--quick] [--seed 1]. Collector kills: all its processes at once at a uniform
instant of the flush cycle, and the ingest worker at each named point. Agent kills: a real agent with 8
simulated GPUs, all its processes at once, and at each named point of its delivery path, behind a relay that
notes what was said.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import harness
from bench.harness import Lab, free_port, machine, print_table, write_toml
from bench.relay_oracle import Relay
from integration.failing_agent import POINTS as AGENT_POINTS
from integration.failing_agent import SCRIPT as AGENT_SCRIPT
from integration.failing_worker import SCRIPT
from integration.ingest_host import QUICK, Host, until
from integration.kill_oracle import Sender, judge

from gpuvigil_collector.ingest.hooks import POINTS

KILLS = 10
POINT_KILLS = 3
WHO = ("collector", "worker", "agent")
IN_FLIGHT_MIN = 5
CYCLE_S = 2.0


def kill_tree(pid: int) -> None:
    """SIGKILL a process that this benchmark started, and all that it started, children first."""
    for process in reversed(harness.tree(pid)):
        process.kill()


async def collector_kills(lab: Lab, rng: random.Random, kills: int) -> list[object]:
    """Kill the whole collector at uniform instants while three nodes send."""
    tables = {"": {"state_directory": str(lab.directory / "state"), "log_level": "error"},
              "ingest": {"address": f"127.0.0.1:{free_port()}"},
              "web": {"address": f"127.0.0.1:{free_port()}"}}  # fmt: skip
    config = write_toml(lab.directory / "collector.toml", tables)
    senders = [Sender(f"n{n}", pause_s=0.05) for n in range(3)]
    tasks = [asyncio.create_task(sender.run(str(tables["ingest"]["address"]))) for sender in senders]
    hits = 0
    for kill in range(kills + 1):
        process = lab.module(f"collector-{kill}", "gpuvigil_collector", config)
        await _moves(senders)
        if kill == kills:
            break
        await asyncio.sleep(rng.uniform(0, CYCLE_S))
        hits += any(sender.in_flight for sender in senders)
        kill_tree(process.pid)
        process.wait(10)
    for sender in senders:
        sender.stopping = True
    async with asyncio.timeout(90):
        await asyncio.gather(*tasks)
    verdict = judge(senders, lab.directory / "state" / "ingest" / "recordings")
    lab.stop()
    return ["collector, uniform", kills, hits, verdict.acknowledged, len(verdict.lost), len(verdict.doubled)]


async def _moves(senders: list[Sender]) -> None:
    before = [sender.durable["metrics"] for sender in senders]
    moved = lambda: all(s.durable["metrics"] > b for s, b in zip(senders, before, strict=True))  # noqa: E731
    await until(moved, "every node's watermark moved", 60)


async def point_kills(lab: Lab, point: str) -> list[object]:
    """Kill the ingest worker at one named point."""
    marker = lab.directory / f"killed-{point}"
    command = [sys.executable, str(SCRIPT), "kill", point, "9", str(marker)]
    with Host(lab.directory / point, QUICK, command) as host:
        senders = [Sender(f"n{n}") for n in range(3)]
        tasks = [asyncio.create_task(sender.run(host.address)) for sender in senders]
        await until(marker.exists, f"the kill at {point}", 60)
        hit = any(sender.in_flight for sender in senders)
        await _moves(senders)
        for sender in senders:
            sender.stopping = True
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        verdict = judge(senders, host.recordings)
    return [f"worker, {point}", 1, int(hit), verdict.acknowledged, len(verdict.lost), len(verdict.doubled)]


async def agent_kills(lab: Lab, rng: random.Random, kills: int) -> list[object]:
    """Kill a whole agent at uniform instants; the relay is the witness."""
    with Host(lab.directory / "for-agent") as host:
        relay = Relay(host.address)
        config = _agent_config(lab, await relay.start(), "agent")
        hits = 0
        for kill in range(kills + 1):
            before = sum(relay.durable.values())
            process = lab.module(f"agent-{kill}", "gpuvigil_agent", config)
            await until(
                lambda before=before: sum(relay.durable.values()) > before + 2, "data of the agent", 60
            )
            if kill == kills:
                break
            await asyncio.sleep(rng.uniform(0, CYCLE_S))
            hits += relay.in_flight > 0
            kill_tree(process.pid)
            process.wait(10)
        await until(lambda: relay.in_flight <= 2, "the backlog delivered", 120)
        await asyncio.to_thread(lab.stop)
        await relay.stop()
        return _agent_row("agent, uniform", kills, hits, relay.judge(host.recordings))


def _agent_row(what: str, kills: int, hits: int, found: dict[str, int]) -> list[object]:
    return [what, kills, hits, found["acknowledged"], found["lost"], found["doubled"] + found["reused"]]


async def agent_point_kills(lab: Lab, point: str, kills: int) -> list[object]:
    """Kill the agent at one named point of its delivery path, at its 2nd, 4th, ... arrival there."""
    hits = 0
    with Host(lab.directory / f"for-{point}") as host:
        relay = Relay(host.address)
        config = _agent_config(lab, await relay.start(), point)
        for kill in range(kills + 1):
            before = sum(relay.durable.values())
            marker = lab.directory / f"{point}-{kill}"
            arguments = ["kill", point, str(2 * (kill + 1)), str(marker), "--", "--config", str(config)]
            if kill == kills:
                lab.module(f"{point}-last", "gpuvigil_agent", config)
                break
            process = lab.start(f"{point}-{kill}", [sys.executable, str(AGENT_SCRIPT), *arguments])
            await asyncio.to_thread(process.wait, 60)
            lab.processes.pop()
            hits += relay.in_flight > 0
        await until(lambda: sum(relay.durable.values()) > before + 8, "data of the last agent", 60)
        await until(lambda: relay.in_flight <= 2, "the backlog delivered", 120)
        await asyncio.to_thread(lab.stop)
        await relay.stop()
        return _agent_row(f"agent, {point}", kills, hits, relay.judge(host.recordings))


def _agent_config(lab: Lab, collector: str, name: str) -> Path:
    tables = {"": {"node": "n1", "state_directory": str(lab.directory / name), "log_level": "error"},
              "collector": {"address": collector}, "metrics": {"address": ""},
              "gpu": {"source": "simulated"}, "simulate": {"gpus": 8}}  # fmt: skip
    return write_toml(lab.directory / f"{name}.toml", tables)


async def run(seed: int, kills: int, kills_a_point: int) -> int:
    """Run all, print the table; 1 when anything was lost, doubled, or too few kills hit a batch in flight."""
    rng = random.Random(seed)
    with Lab() as lab:
        rows = [await collector_kills(lab, rng, kills)]
        rows += [await point_kills(lab, point) for point in POINTS]
        rows.append(await agent_kills(lab, rng, kills))
        rows += [await agent_point_kills(lab, point, kills_a_point) for point in AGENT_POINTS]
    header = ["killed", "kills", "hit a batch in flight", "acknowledged durable", "lost", "doubled"]
    print_table(f"kill -9 (seed {seed}; {machine()})", header, rows)
    total = sum(int(str(row[1])) for row in rows)
    print(f"\n{total} kills: 0 wrong in n kills bounds the rate by 3/n, here {100 * 3 / total:.1f} % (95 %)")
    wrong = any(row[4] or row[5] for row in rows)
    hits = {who: sum(int(str(row[2])) for row in rows if str(row[0]).startswith(who)) for who in WHO}
    return int(wrong or min(hits["agent"], hits["collector"] + hits["worker"]) < min(IN_FLIGHT_MIN, kills))


def main() -> int:
    """Read the command line; --quick kills twice instead of ten times, and then too few hit anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return asyncio.run(run(options.seed, 2 if options.quick else KILLS, 1 if options.quick else POINT_KILLS))


if __name__ == "__main__":
    sys.exit(main())
