"""Nothing outlives its agent, and the agent outlives no order to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from integration.stack import environment

from gpuvigil_agent import __main__ as agent_main

PARENT = """
import asyncio, sys, time
from gpuvigil_agent.config import AgentConfig, Gpu, Simulate
from gpuvigil_agent.driver_client import DriverClient

async def run():
    config = AgentConfig(node="n1", state_directory=sys.argv[1], gpu=Gpu(source="simulated"),
                         simulate=Simulate(gpus=1))
    client = DriverClient(config, lambda event: None)
    await client.start()
    while not client.gpus:
        await client.tick(time.time_ns())
    print(client._child.pid, flush=True)
    await asyncio.sleep(120)

asyncio.run(run())
"""
NEVER_ENDS = """
import asyncio, time
from gpuvigil_agent import __main__ as agent
agent.EXIT_WITHIN_S = 0.5
agent._begin_end(asyncio.Event())
print("begun", flush=True)
time.sleep(120)
"""

DISK_HANGS = """
import sys, time
from gpuvigil_agent import __main__ as agent, spool_store

def hang(*_, **__):
    print("hangs", flush=True)
    while True:
        time.sleep(60)

spool_store.Store.__init__ = hang
sys.exit(agent.main(["--set", f"state_directory={sys.argv[1]}", "--set", "metrics.address=127.0.0.1:0"]))
"""


def gone(pid: int, within_s: float = 15) -> bool:
    """Wait until a process is no more, or a zombie that nobody of ours can reap."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_driver_process_that_is_stopped_ends_with_its_killed_agent(tmp_path: Path) -> None:
    command = (sys.executable, "-c", PARENT, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            os.kill(child, signal.SIGSTOP)  # it sees no end of its link any more: the kernel must end it
            parent.kill()
            parent.wait(10)
            assert gone(child)
        finally:
            if not gone(child, 0.1):
                os.kill(child, signal.SIGKILL)


def test_an_end_that_hangs_is_cut_short() -> None:
    assert agent_main.EXIT_WITHIN_S < 10, "systemd and people are promised 10 s"
    command = (sys.executable, "-c", NEVER_ENDS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            assert process.wait(10) == 1
        finally:
            process.kill()


def test_a_disk_that_hangs_at_the_start_does_not_outlast_an_order_to_end(tmp_path: Path) -> None:
    command = (sys.executable, "-c", DISK_HANGS, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            process.send_signal(signal.SIGHUP)
            process.terminate()
            assert process.wait(10) == -signal.SIGTERM, "neither a reload nor a traceback"
        finally:
            process.kill()
