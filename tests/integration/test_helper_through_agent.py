"""A signed order's whole way: actuator, ingest, agent, helper, script, and the look afterwards."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from integration.ingest_host import until
from integration.stack import environment
from integration.supervised import FENCE, Pair, action, pair
from unit.helper_world import GPU, script, write_keys

from gpuvigil_collector.action import Fence, RefusedError
from gpuvigil_collector.actuators.helper import HelperActuator, Signer

pytestmark = pytest.mark.needs_root  # only root sees whose process holds a GPU; to the helper unseen is held
CONFIG = """
act = {act}
node = "n1"
key = "{folder}/collector.pub"
agent_user = "0"
socket = "{node}/helper.sock"
state_directory = "{folder}/helper"
pause_files = ["{node}/pause"]
systemctl = ["{systemctl}"]
[stop]
allow = 'train\\.service'
command = ["{systemctl}", "stop", "{{unit}}"]
[reset]
command = ["{reset}", "{{gpu}}"]
evidence = ["true"]
links = ["true"]
let_go = []
devices = []
[reboot]
command = ["{reboot}"]
"""


class Way:
    """A pair of agents, a helper beside n1, and the actuator."""

    def __init__(self, made: Pair, folder: Path) -> None:
        self.made, self.folder = made, folder
        write_keys(folder)
        self.did = folder / "did"
        self.did.touch()
        self.actuator = HelperActuator(made.call, Signer(folder / "collector.key"), "{job}.service")
        self.helper: subprocess.Popen[bytes] | None = None

    def start(self, act: str = "true") -> None:
        node = self.made.nodes["n1"]
        agent = node.agent.process.pid
        # what the reset sees of the agent's driver process while it runs
        reset = f'echo "reset $* $(pgrep -P {agent} -f driver_process | wc -l)" >> {self.did}\nsleep 1.5'
        unit = self.folder / "unit-runs"
        systemctl = (
            f"case $1 in stop) rm -f {unit};; show) test -e {unit} && echo active || echo inactive;; esac"
        )
        config = self.folder / "helper.toml"
        config.write_text(CONFIG.format(
            act=act, folder=self.folder, node=node.folder,
            reset=script(self.folder / "reset", reset),
            reboot=script(self.folder / "reboot", f"echo reboot >> {self.did}"),
            systemctl=script(self.folder / "systemctl", systemctl),
        ))  # fmt: skip
        command = [sys.executable, "-m", "gpuvigil_helper", "--config", str(config)]
        with (self.folder / "helper.log").open("ab") as log:
            self.helper = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while b"helper_started" not in (self.folder / "helper.log").read_bytes():
            assert time.monotonic() < deadline, (self.folder / "helper.log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.helper is not None and self.helper.poll() is None:
            self.helper.kill()
            self.helper.wait(10)

    def children(self) -> int:
        agent = self.made.nodes["n1"].agent.process.pid
        done = subprocess.run(
            ["pgrep", "-P", str(agent), "-f", "driver_process"], capture_output=True, timeout=10
        )
        return len(done.stdout.split())

    async def apply(self, what: object, fence: Fence = FENCE) -> str:
        return await asyncio.to_thread(self.actuator.apply, what, fence)  # type: ignore[arg-type]

    async def look(self, what: object) -> object:
        return await asyncio.to_thread(self.actuator.look, what)  # type: ignore[arg-type]


@asynccontextmanager
async def way(folder: Path) -> AsyncIterator[Way]:
    async with pair(folder) as made:
        found = Way(made, folder)
        try:
            yield found
        finally:
            found.stop()


async def test_a_reset_frees_the_gpus_and_they_come_back(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        reset = action("reset_gpu", "n1", gpu=GPU)
        assert (await found.look(reset)).state == "unknown", "no helper answers yet"
        with pytest.raises(RefusedError, match="the helper cannot be reached"):
            await found.apply(reset)
        found.start()
        await until(lambda: found.children() == 1, "the driver process", 20)
        look = await found.look(reset)
        assert look.state == "absent" and len(look.token) == 36
        assert (await found.apply(reset)).startswith(f"reset of {GPU}: exit status 0")
        assert found.did.read_text() == f"reset {GPU} 0\n", "no driver process of ours while it was reset"
        await until(lambda: found.children() == 1, "the driver process again", 20)
        assert (await found.look(reset)).state == "done"
        with pytest.raises(RefusedError, match="limit of this node: 1 resets of this GPU an hour"):
            await found.apply(action("reset_gpu", "n1", "a2", gpu=GPU))
        await until(lambda: found.children() == 1, "the driver process after a refusal", 20)


async def test_reboot_and_stop_of_a_unit(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        found.start()
        reboot, stop = action("reboot", "n1"), action("stop_job", "n1", "a2", job="train")
        (tmp_path / "unit-runs").touch()
        assert (await found.look(stop)).state == "absent"
        assert await found.apply(stop) == "train.service is inactive"
        assert (await found.look(stop)).state == "done"
        assert (await found.look(reboot)).state == "absent"
        assert await found.apply(reboot) == "the reboot has begun"
        assert (await found.look(reboot)).state == "unknown", "until the boot id is another"
        with pytest.raises(RefusedError, match="generation: expected 3 or newer, got 2"):
            await found.apply(
                action("reboot", "n1", "a3"), Fence(holder="old", generation=2, until_ns=1 << 62)
            )
        (found.made.nodes["n1"].folder / "pause").write_text("anna")
        with pytest.raises(RefusedError, match="paused: "):
            await found.apply(action("reboot", "n1", "a4"))
        assert found.did.read_text() == "reboot\n"


async def test_a_helper_that_only_observes_and_one_that_dies_in_the_middle(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        found.start("false")
        reset = action("reset_gpu", "n1", gpu=GPU)
        with pytest.raises(RefusedError, match=f"would: would reset_gpu {GPU}; act is off"):
            await found.apply(reset)
        assert found.did.read_text() == ""
        found.stop()
        (tmp_path / "helper.log").write_text("")
        found.start()
        applying = asyncio.create_task(found.apply(reset))
        await until(found.did.read_text, "the reset", 20)
        found.stop()
        with pytest.raises(Exception, match=r"unknown: the helper"):
            await applying
        (tmp_path / "helper.log").write_text("")
        found.start()
        assert (await found.look(reset)).state == "unknown"
        await until(lambda: found.children() == 1, "the driver process again", 20)
