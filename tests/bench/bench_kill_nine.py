"""kill -9 of collector and agent, ten times each, and at every named point: what the oracle found.

`python tests/bench/bench_kill_nine.py [SEED]`. Collector kills: all its processes at once at a uniform
instant of the flush cycle, and the ingest worker at each named point. Agent kills: a real agent with 8
simulated GPUs, all its processes at once, behind a relay that notes what was said.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import harness
from bench.harness import Lab, free_port, machine, print_table, write_toml
from bench.relay_oracle import Relay
from integration.failing_worker import SCRIPT
from integration.ingest_host import QUICK, Host, until
from integration.kill_oracle import Sender, judge

from gpuvigil_collector.ingest.hooks import POINTS

KILLS = 10
IN_FLIGHT_MIN = 5
CYCLE_S = 2.0


def kill_tree(pid: int) -> None:
    """SIGKILL a process that this benchmark started, and all that it started, children first."""
    for process in reversed(harness.tree(pid)):
        process.kill()


async def collector_kills(lab: Lab, rng: random.Random) -> list[object]:
    """Kill the whole collector at uniform instants while three nodes send."""
    tables = {"": {"state_directory": str(lab.directory / "state"), "log_level": "error"},
              "ingest": {"address": f"127.0.0.1:{free_port()}"},
              "web": {"address": f"127.0.0.1:{free_port()}"}}  # fmt: skip
    config = write_toml(lab.directory / "collector.toml", tables)
    senders = [Sender(f"n{n}", pause_s=0.05) for n in range(3)]
    tasks = [asyncio.create_task(sender.run(str(tables["ingest"]["address"]))) for sender in senders]
    hits = 0
    for kill in range(KILLS + 1):
        process = lab.module(f"collector-{kill}", "gpuvigil_collector", config)
        await _moves(senders)
        if kill == KILLS:
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
    return ["collector, uniform", KILLS, hits, verdict.acknowledged, len(verdict.lost), len(verdict.doubled)]


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


async def agent_kills(lab: Lab, rng: random.Random) -> list[object]:
    """Kill a whole agent at uniform instants; the relay is the witness."""
    with Host(lab.directory / "for-agent") as host:
        relay = Relay(host.address)
        address = await relay.start()
        tables = {"": {"node": "n1", "state_directory": str(lab.directory / "agent"), "log_level": "error"},
                  "collector": {"address": address}, "metrics": {"address": ""},
                  "gpu": {"source": "simulated"}, "simulate": {"gpus": 8}}  # fmt: skip
        config = write_toml(lab.directory / "agent.toml", tables)
        hits = 0
        for kill in range(KILLS + 1):
            before = sum(relay.durable.values())
            process = lab.module(f"agent-{kill}", "gpuvigil_agent", config)
            await until(
                lambda before=before: sum(relay.durable.values()) > before + 2, "data of the agent", 60
            )
            if kill == KILLS:
                break
            await asyncio.sleep(rng.uniform(0, CYCLE_S))
            hits += relay.in_flight > 0
            kill_tree(process.pid)
            process.wait(10)
        await until(lambda: relay.in_flight <= 2, "the backlog delivered", 120)
        await asyncio.to_thread(lab.stop)
        await relay.stop()
        found = relay.judge(host.recordings)
    lost, doubled = found["lost"], found["doubled"] + found["reused"]
    return ["agent, uniform", KILLS, hits, found["acknowledged"], lost, doubled]


async def run(seed: int) -> int:
    """Run all, print the table; 1 when anything was lost, doubled, or too few kills hit a batch in flight."""
    rng = random.Random(seed)
    with Lab() as lab:
        rows = [await collector_kills(lab, rng)]
        rows += [await point_kills(lab, point) for point in POINTS]
        rows.append(await agent_kills(lab, rng))
    header = ["killed", "kills", "hit a batch in flight", "acknowledged durable", "lost", "doubled"]
    print_table(f"kill -9 (seed {seed}; {machine()})", header, rows)
    collector_hits = sum(int(str(row[2])) for row in rows[:-1])
    wrong = any(row[4] or row[5] for row in rows)
    return int(wrong or collector_hits < IN_FLIGHT_MIN or int(str(rows[-1][2])) < IN_FLIGHT_MIN)


def main() -> int:
    """Take the seed from the command line."""
    return asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1))


if __name__ == "__main__":
    sys.exit(main())
