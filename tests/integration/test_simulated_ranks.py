"""The ranks of a simulated node: real processes that register, keep the schedule, end with their agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from integration.ingest_host import until
from integration.stack import environment
from integration.test_hook_agent import stack

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate.world import World

SCENARIO = """
version = 1
[[job]]
name = "j1"
nodes = ["n1"]
ranks_per_node = 2
step = "200ms"
checkpoint_every = 20
checkpoint = "300ms"
duration = "25s"
[[fault]]
kind = "loss_spike"
job = "j1"
at = "20s"
"""
WITHIN_S = 40


def ranks(agent: int) -> list[psutil.Process]:
    """The processes of the agent's simulated ranks."""
    found = psutil.Process(agent).children(recursive=True)
    nodes = [one for one in found if "gpuvigil_agent.simulate.job_node" in one.cmdline()]
    return [one for one in nodes if one.ppid() != agent]


async def test_ranks_keep_the_schedule_end_with_the_agent_and_come_back_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    start_ns = time.time_ns()
    more = f'scenario = "{file}"\nstart_ns = {start_ns}\ntruth_file = "{tmp_path}/truth"\n'
    async with stack(tmp_path, gpus=2, simulate=more) as made:
        await until(lambda: len(made.rows("rank_step", 1)) > 25, "steps of rank 1", WITHIN_S)
        ups = [made.told("rank_up", rank)[0] for rank in (0, 1)]
        here = World(Simulate(gpus=2, start_ns=start_ns), "n1")
        assert [up.fields["gpu"] for up in ups] == [here.uuid(0), here.uuid(1)], "no claim was refused"
        assert max(made.rows("rank_checkpoint_seconds", 1)) > 0.29
        pids = {int(up.fields["pid"]) for up in ups}
        assert pids == {one.pid for one in ranks(made.agent.process.pid)}, "one process a rank"
        seconds = made.rows("rank_step_seconds", 1)[1:]
        assert 0.195 < sorted(seconds)[len(seconds) // 2] < 0.21, "whatever else this machine does"
        made.agent.process.send_signal(signal.SIGKILL)
        made.agent.process.wait(10)
        await until(lambda: not any(map(psutil.pid_exists, pids)), "the ranks' end", 10)
        before = max(made.rows("rank_step"))
        made.agent.start()
        await until(lambda: max(made.rows("rank_step")) > before + 5, "steps of the new ranks", WITHIN_S)
        gone = (time.time_ns() - start_ns) / 1e9
        assert max(made.rows("rank_step")) < (gone - 3) / 0.2, "never ahead of the schedule"
        await until(lambda: made.told("rank_down"), "the job's end", WITHIN_S)
        assert {one.fields["reason"] for one in made.of("rank_down")} == {"exit"}
        assert (tmp_path / "truth").read_text().count("loss_spike") == 1


def test_an_agent_without_a_socket_says_so(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    config = tmp_path / "a.toml"
    config.write_text(
        f'node = "n1"\nstate_directory = "{tmp_path}"\n[hook]\nsocket = ""\n[metrics]\naddress = ""\n'
        f'[gpu]\nsource = "simulated"\n[simulate]\ngpus = 2\nscenario = "{file}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "gpuvigil_agent", "--config", str(config)],
        env=environment(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and os.linesep not in done.stderr.strip().splitlines()[-1]
    assert "hook.socket: expected a path, because job j1" in done.stderr and "Traceback" not in done.stderr
