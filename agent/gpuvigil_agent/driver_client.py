"""The agent's way to the driver: starts the driver process, ticks it, replaces it when it dies or hangs.

Nothing here waits for the driver: a tick ends after 0.8 s with what is there, and a process that hangs in
the kernel is let go. A new process comes at most once a minute, but for the first restart, which is at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.driver_child import DriverChild
from gpuvigil_agent.driver_episodes import TRIES
from gpuvigil_agent.driver_frames import GpuInfo
from gpuvigil_agent.driver_probe import Probe
from gpuvigil_agent.driver_report import DriverReport
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.samplers.base import Sample

__all__ = ["DriverClient", "GpuInfo"]

TICK_S: Final = 0.8
RESTART_S: Final = 60.0
RELOAD_S: Final = 5.0  # a driver that was there and went is looked for sooner
SPEAK_S: Final = 30.0
_STOP_S: Final = 1.0
_ABANDONED_MAX: Final = 3
_COUNTERS: Final = ("calls", "timeouts", "late", "restarts", "crashes", "abandoned")
State = Literal["absent", "starting", "running", "stuck", "restarting", "off"]


class DriverClient:
    """See the module. All methods and callbacks are on one asyncio loop.

    node is the name that the agent goes by where the config leaves it open; the simulated driver needs it.
    """

    def __init__(self, config: AgentConfig, on_event: Callable[[AgentEvent], None], node: str = "") -> None:
        self._config = config.gpu
        simulate = config.simulate
        if not simulate.start_ns:  # every driver process of this agent must count from one instant
            simulate = msgspec.structs.replace(simulate, start_ns=time.time_ns())
        simulated = config.gpu.source == "simulated"
        self._begin = frames.Begin(simulated, node or config.node, simulate, config.gpu.calls_per_second_max)
        file = Path(config.state_directory) / "gpus.json"
        self._report = DriverReport(file, config.gpu.call_deadline, on_event, time.time_ns)
        self._probe = Probe(self._begin)
        self._child: DriverChild | None = None
        self._abandoned: dict[DriverChild, list[int]] = {}
        self._answered: asyncio.Future[list[Sample]] | None = None
        self._number, self._missed = 0, 0
        self._heard_at = 0.0
        self._initialised, self._settled = False, False
        self._start_at, self._restarted_at = 0.0, float("-inf")
        self._absent = ""
        self._calls_before = 0
        self._let_go = False
        self.driver_version = ""
        self.counters = dict.fromkeys(_COUNTERS, 0)

    @property
    def state(self) -> State:
        """Return where the driver stands, for status and metrics."""
        if self._config.source == "none":
            return "off"
        if self._child is not None and (self._missed >= TRIES or self._report.stuck):
            return "stuck"
        if self._absent:
            return "absent"
        if self._child is None:
            return "stuck" if self._all_hang else "restarting"
        return "running" if self._settled else "starting"

    @property
    def note(self) -> str:
        """Return one sentence for people; empty when all is well."""
        if self._config.source == "none":
            return "GPU readings are off (gpu.source)"
        if self._let_go:
            return "the GPUs are let go for a reset"
        if self._child is None and self._all_hang:
            return (
                f"driver stuck: {len(self._abandoned)} driver processes hang in the kernel; a new one starts "
                "when one of them ends"
            )
        if self.state == "restarting":
            return "the driver process ended; a new one starts within a minute"
        if self._report.stuck:
            hanging = ", ".join(f"{stuck.call} ({stuck.entity})" for stuck in self._report.hanging)
            return f"driver stuck: {hanging or ', '.join(sorted(self._report.stuck))}"
        return self._absent

    @property
    def _all_hang(self) -> bool:
        """True when so many processes hang that another would only be one more."""
        return len(self._abandoned) >= _ABANDONED_MAX

    @property
    def source(self) -> str:
        """Return what answers: nvml, simulated or none."""
        if self._config.source == "none" or self._absent:
            return "none"
        return "simulated" if self._begin.simulated else "nvml"

    @property
    def gpus(self) -> tuple[GpuInfo, ...]:
        """Return every GPU that the node has had, and whether it answers now; nothing until that is known."""
        known = self.driver_version or self._absent
        return self._report.inventory.gpus if known else ()

    @property
    def hanging(self) -> tuple[frames.Stuck, ...]:
        """Return the calls that have not returned yet, before they are news too."""
        return tuple(self._report.hanging)

    async def start(self) -> None:
        """Start the driver process; returns at once, whatever the driver does."""
        if self._config.source != "none":
            await self._start_child()

    async def tick(self, tick_ns: int) -> list[Sample]:
        """Return all samples due at this tick, within 0.8 s; a GPU or driver that hangs is left out."""
        if self._config.source == "none":
            return []
        samples = await self._ask(tick_ns)
        await self._care()
        known = self._settled or self._absent or (self._initialised and self._report.stuck)
        return [*samples, *(self._report.node_samples() if known else ())]

    async def stop(self) -> None:
        """End the driver process within 2 s, or let go of one that hangs."""
        self._probe.stop()
        child, self._child = self._child, None
        if child is None:
            return
        child.send(frames.Stop())
        try:
            await asyncio.wait_for(child.ended.wait(), _STOP_S)
        except TimeoutError:
            child.abandon()
            with contextlib.suppress(TimeoutError):  # in D state: the kernel keeps it, we do not
                await asyncio.wait_for(child.ended.wait(), _STOP_S / 2)

    async def release(self, seconds: float) -> bool:
        """Let go of every GPU until `take`, for `seconds` at most; False when one of ours hangs on."""
        self._let_go, self._start_at = True, time.monotonic() + seconds
        child = self._child
        await self.stop()
        self._forget_child()
        return not self._abandoned and (child is None or child.ended.is_set())

    def take(self) -> None:
        """Open the GPUs again."""
        if self._let_go:
            self._let_go, self._start_at = False, 0.0

    # --- one tick
    async def _ask(self, tick_ns: int) -> list[Sample]:
        """Send a tick unless one is still unanswered, and wait for the answer."""
        if self._child is None:
            return []
        if self._answered is None:
            self._number += 1
            self._answered = asyncio.get_running_loop().create_future()
            skip = sorted({index for indices in self._abandoned.values() for index in indices})
            self._child.send(frames.Tick(self._number, tick_ns, skip))
        try:
            samples = await asyncio.wait_for(asyncio.shield(self._answered), TICK_S)
        except TimeoutError:
            self._missed += 1
            self.counters["timeouts"] += 1
            return []
        return samples

    def _on_frame(self, child: DriverChild, frame: frames.Up) -> None:
        if child is not self._child:
            return
        self._heard_at = time.monotonic()
        if isinstance(frame, frames.Answer):
            self._take_answer(frame)
        elif isinstance(frame, frames.Inventory):
            self._take_inventory(frame)
        elif isinstance(frame, frames.Happened):
            self._report.take_happened(frame)
        else:
            self._take_end(frame)

    def _take_inventory(self, inventory: frames.Inventory) -> None:
        self._initialised, self._absent = True, ""
        self._settled = self._settled or inventory.complete
        self.driver_version = inventory.driver_version
        skipped = [index for indices in self._abandoned.values() for index in indices]
        self._report.take_inventory(inventory, skipped)

    def _take_answer(self, answer: frames.Answer) -> None:
        """Give the tick that waits its samples; those of a tick that no longer waits are too late."""
        samples = list(self._report.take_answer(answer, initialised=self._initialised))
        self.counters |= answer.counters | {"calls": self._calls_before + answer.counters["calls"]}
        late, self._missed = self._missed > 0, 0
        waiting, self._answered = self._answered, None
        if late or waiting is None:
            self.counters["late"] += 1
            samples = []
        if waiting is not None and not waiting.done():
            waiting.set_result(samples)

    def _take_end(self, ended: frames.Ended) -> None:
        """No driver: say so, and look again later (soon, where there was one)."""
        was_there = bool(self.driver_version)
        reason = "no NVIDIA driver on this node" if "Library Not Found" in ended.reason else ended.reason
        self._absent = f"host-only: {reason}"
        if self._config.source == "nvml":
            self._absent += " (gpu.source is nvml)"
        self._report.inventory.lose_all()
        self._forget_child()
        self._start_at = time.monotonic() + (RELOAD_S if was_there else RESTART_S)

    # --- life of the process
    async def _start_child(self) -> None:
        child = DriverChild(self._on_frame, self._on_end)
        self._forget_child()
        self._child = child
        self._heard_at = time.monotonic() + SPEAK_S  # a new process may be slow to speak
        try:
            await child.start(self._begin)
        except OSError as error:
            self._absent = f"the driver process cannot be started: {error.strerror}"
            self._forget_child()
            self._start_at = time.monotonic() + RESTART_S

    def _forget_child(self) -> None:
        self._child, self._missed = None, 0
        self._initialised, self._settled = False, False
        self._calls_before = self.counters["calls"]
        waiting, self._answered = self._answered, None
        if waiting is not None and not waiting.done():
            waiting.set_result([])

    def _on_end(self, child: DriverChild, status: int) -> None:
        """A process ended: an abandoned one at last, or ours by itself, which is a crash."""
        if self._abandoned.pop(child, None) is not None or child is not self._child:
            return
        self.counters["crashes"] += 1
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._report.tell_crash(reason)
        self._forget_child()
        self._schedule_restart()

    def _schedule_restart(self) -> None:
        """At once the first time, then at most once a minute."""
        now = time.monotonic()
        self._start_at = self._restarted_at = max(now, self._restarted_at + RESTART_S)
        self.counters["restarts"] += 1

    async def _care(self) -> None:
        """Replace a process that does not answer, start one that is due, look for lost GPUs afresh."""
        now = time.monotonic()
        if self._child is not None and self._missed >= TRIES and now - self._heard_at >= TRIES:
            self._replace(now - self._heard_at)
        if self._child is None and now >= self._start_at and not self._all_hang:
            self._let_go = False
            await self._start_child()
        if self._settled and (found := await self._probe.step(self._report.lost, now)) is not None:
            self._promote(*found)

    def _replace(self, seconds: float) -> None:
        """Let go of a process that hangs whole; its successor keeps off the GPUs that hung."""
        child = self._child
        if child is None:
            return
        self.counters["abandoned"] += 1
        self._abandoned[child] = [stuck.index for stuck in self._report.hanging if stuck.index >= 0]
        self._report.tell_hang(seconds)
        child.abandon()
        self._forget_child()
        self._schedule_restart()

    def _promote(self, child: DriverChild, inventory: frames.Inventory) -> None:
        """Take the probe's process, which sees a GPU that ours does not."""
        if self._child is not None:
            self._child.send(frames.Stop())
            self._abandoned[self._child] = []
        self._forget_child()
        self._child, self._heard_at = child, time.monotonic()
        child.hand_over(self._on_frame, self._on_end)
        self._take_inventory(inventory)
