"""The agent as a whole: owns every part, runs the ticks, and ends within 10 s whatever the driver does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from gpuvigil_agent import metrics, sources
from gpuvigil_agent.collect import Collect
from gpuvigil_agent.commands import Commands
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.driver_client import DriverClient
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.events import Events
from gpuvigil_agent.hook_intake import HookIntake
from gpuvigil_agent.host_runner import HostRunner
from gpuvigil_agent.identity import kernel_boot_id, phase_s
from gpuvigil_agent.kernel_reader import KernelReader
from gpuvigil_agent.ledger import METRICS
from gpuvigil_agent.metrics_server import MetricsServer
from gpuvigil_agent.node_commands import NodeCommands
from gpuvigil_agent.notify import Notify
from gpuvigil_agent.schedule import Beat, sleep_until_due
from gpuvigil_agent.simulated_jobs import SimulatedJobs
from gpuvigil_agent.spool import Spool
from gpuvigil_agent.spool_store import Row
from gpuvigil_agent.stream import Stream
from gpuvigil_protos import entity, log
from gpuvigil_protos.v1 import stream_pb2 as pb

_DRAIN_S: Final = 1.0
_LET_GO_S: Final = 300.0  # a reset takes seconds; nobody's crash shall blind us for longer
_LET_GO_WAIT_S: Final = 10.0
_STATUS_TICKS: Final = 5
_QUIET: Final = frozenset({"xid", "sxid", "kernel", "collectives"})  # the kernel's own log has these
_log = log.get("agent")


class Agent:
    """Make it, `open` it, `run` it once. `stop` may be set from a signal handler on the loop."""

    def __init__(self, config: AgentConfig, node: str) -> None:
        self.config, self.node = config, node
        directory = Path(config.spool.directory or Path(config.state_directory) / "spool")
        self.spool = Spool(directory, config.spool.size_max, config.spool.sync_interval, kernel_boot_id())
        self.driver = DriverClient(config, self._on_event, node)
        self.hook = HookIntake(config.hook, self._on_event, self._has_gpu)
        self.collect = Collect(self.driver, HostRunner(sources.host_samplers(config, node)), self.hook)
        self.effects = NodeCommands(config, self._let_go)
        self.stream = Stream(
            config, node, self.spool, self._inventory, self.collect.batch.dictionary,
            self._set_flush_interval, Commands(self.hook, self.effects).answer,
        )  # fmt: skip
        self.events = Events(self.spool, self.stream)
        self.kernel = KernelReader(config, node, self._gpu_by_pci, self._on_event)
        self.jobs = SimulatedJobs(config, node)
        self.beat = Beat(phase_s(node))
        self.endpoint: MetricsServer | None = None
        self.stop = asyncio.Event()
        self.ticks = 0
        self.lateness_s = 0.0
        self.reload_ok = True
        self._flush_interval_s = float(config.collector.flush_interval)
        self._next_flush_s = 0.0
        self._inventory_told: tuple[object, ...] = ()
        self._saved_version = (0, "")
        self._spool_state = "ok"
        self._notify = Notify()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Take what may be refused or may hang, port and disk. Raises SpoolError and ConfigError."""
        if self.config.metrics.address:  # first: a port that is taken must not look like a crash of the spool
            self.endpoint = metrics.serve(self, self.config.metrics.address)
        self.spool.open()

    async def run(self) -> None:
        """Start every part, tick until `stop`, end every part."""
        self._loop = asyncio.get_running_loop()
        await self.driver.start()
        link = asyncio.ensure_future(self.stream.run())
        self.kernel.start()
        self.hook.start()
        if self.spool.writer.counters["unclean_starts"]:
            seconds = max(self._flush_interval_s, self.config.spool.sync_interval)
            self._tell(f"the agent did not end cleanly; up to {seconds:g} s of samples may be lost")
        self._notify.ready(self.status())
        _log.info("agent_started", node=self.node, driver=self.driver.state, spool=str(self.spool.directory))
        try:
            while await sleep_until_due(self.beat, self.stop):
                if link.done():
                    link.result()
                self.kernel.check()
                await self._tick()
        finally:
            self._notify.stopping()
            await self._end(link)
            if self.endpoint is not None:
                self.endpoint.shutdown()

    async def _tick(self) -> None:
        tick = self.beat.next()
        self.lateness_s = tick.lateness_s
        if not self.spool.alive:
            raise RuntimeError("the spool's thread has died")
        await self.collect.tick(tick)
        self.ticks += 1
        if tick.monotonic_s >= self._next_flush_s:
            self.flush()
            self._next_flush_s = tick.monotonic_s + self._flush_interval_s - 0.5
        self._look_at_changes()
        self.jobs.tend(self.driver.state != "starting")
        self._notify.alive()
        if self.ticks % _STATUS_TICKS == 1:
            self._notify.status(self.status())

    def flush(self) -> None:
        """Number, spool and send what was gathered."""
        for sealed in self.collect.batch.flush():
            boot_id, sequence = self.spool.memory.allocate(METRICS)
            version = sealed.dictionary.version
            if self._saved_version != (version, boot_id):
                self.spool.memory.put_dictionary(boot_id, version, sealed.dictionary.SerializeToString())
                self._saved_version = (version, boot_id)
            sealed.batch.sequence = sequence
            payload = sealed.batch.SerializeToString()
            row = Row(boot_id, METRICS, sequence, version, sealed.samples, payload)
            self.spool.memory.put(row)
            self.stream.offer(row, sealed.dictionary)

    def _look_at_changes(self) -> None:
        """Tell the collector when inventory, driver state or spool state are not what it was last told."""
        now = (self.driver.gpus, self.driver.state, self.driver.note, self.driver.driver_version)
        if now != self._inventory_told and self.stream.tell_inventory():
            self._inventory_told = now
        if self.spool.state != self._spool_state:
            self._tell(f"spool {self.spool.state}, was {self._spool_state}")
            self._spool_state = self.spool.state

    def _tell(self, text: str) -> None:
        self._on_event(
            AgentEvent(time_ns=time.time_ns(), kind="agent", origin="agent", entity=entity.NODE, text=text)
        )

    def _on_event(self, event: AgentEvent) -> None:
        if event.kind not in _QUIET:  # the journal of the node says what it knows, collector or none
            _log.warning("node_event", kind=event.kind, origin=event.origin, entity=event.entity,
                         code=event.code, text=event.text[:200])  # fmt: skip
        self.events.add(event)

    def _inventory(self) -> pb.Inventory:
        driver = self.driver
        gpus = [
            pb.Gpu(uuid=g.uuid, index=max(0, g.index), model=g.model, pci_bus_id=g.pci_bus_id, seen=g.seen)
            for g in driver.gpus
        ]
        return pb.Inventory(gpus=gpus, driver_version=driver.driver_version, kernel=sources.kernel_release(),
                            gpu_source=driver.source, note=driver.note)  # fmt: skip

    def _has_gpu(self, uuid: str) -> bool:
        return any(gpu.uuid == uuid for gpu in self.driver.gpus)

    def _gpu_by_pci(self, pci: str) -> str | None:
        return sources.uuid_at(self.driver.gpus, pci)

    def _let_go(self, go: bool) -> bool:
        """Let go of the GPUs for a reset, or take them again. Called from a worker's thread."""
        if self._loop is None:
            return False
        if not go:
            self._loop.call_soon_threadsafe(self.driver.take)
            return True
        return asyncio.run_coroutine_threadsafe(self.driver.release(_LET_GO_S), self._loop).result(
            _LET_GO_WAIT_S
        )

    def _set_flush_interval(self, seconds: float) -> None:
        _log.info("flush_interval_set", seconds=seconds)
        self._flush_interval_s = seconds

    async def apply(self, config: AgentConfig) -> None:
        """Take the live part of a reloaded config. Raises ConfigError: then all of the old one stays."""
        samplers = sources.host_samplers(config, self.node) if config.host != self.config.host else None
        await self.stream.change(config)
        if config.collector.flush_interval != self.config.collector.flush_interval:
            self._flush_interval_s = float(config.collector.flush_interval)
        if samplers is not None:
            self.collect.host.replace(samplers)
        self.config = config

    def status(self) -> str:
        """Return one line for `systemctl status`."""
        accounts = self.spool.ledger.snapshot()
        waiting = sum(account.spooled + account.in_flight for account in accounts.values())
        gpus = f"{sum(gpu.seen for gpu in self.driver.gpus)} GPUs ({self.driver.source})"
        stream, address = self.stream, self.config.collector.address
        link = {"live": f"streaming to {address}", "refused": f"refused by {address}: {stream.reason}"}
        parts = [
            self.driver.note or gpus,
            link.get(stream.state, f"not connected to {address}{stream.reason and ': '}{stream.reason}"),
            f"spool {waiting} messages",
        ]
        if self.hook.ranks:
            parts.append(f"{len(self.hook.ranks)} training ranks")
        parts += self.effects.notes()
        if self.spool.state != "ok":
            parts.append(f"spool {self.spool.state}")
        if self.kernel.up is False:
            parts.append(f"kernel log {self.kernel.state}")
        return "; ".join(parts)

    async def _end(self, link: asyncio.Future[None]) -> None:
        """Flush, give the link a moment, then let go of everything. Each step has its own bound."""
        self.flush()
        self.kernel.stop()
        self.hook.stop()
        self.jobs.stop()
        if self.stream.connected:
            await asyncio.sleep(_DRAIN_S / 4)
        link.cancel()
        await asyncio.wait({link}, timeout=_DRAIN_S)
        self.collect.host.stop()
        await asyncio.wait_for(self.driver.stop(), 3)
        closed = await asyncio.to_thread(self.spool.close)
        _log.info("agent_stopped", spool_closed=closed)
