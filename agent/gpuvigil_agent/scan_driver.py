"""What a scan asks of the GPUs: one short session with the driver's own process.

A driver that hangs costs the session's deadline and is a finding; the scan goes on without it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.driver_client import DriverClient
from gpuvigil_agent.scan_checks import Facts
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import GPU_DRIVER_CALL_SECONDS

_SESSION_S: Final = 5.0  # of the 10 s that a scan may take
_HUNG_S: Final = 1.5
_TICK_NS: Final = 1_000_000_000
_WAITING: Final = frozenset({"starting", "restarting"})


async def read_gpus(config: AgentConfig, facts: Facts, on_pci: int | None) -> DriverClient:
    """Read every GPU once; returns the stopped client, which knows the inventory."""
    client = DriverClient(config, facts.events.append)
    started = time.monotonic()
    await client.start()
    try:
        await _read(client, facts)
    finally:
        await client.stop()
    _judge_session(client, facts, on_pci, time.monotonic() - started)
    return client


async def _read(client: DriverClient, facts: Facts) -> None:
    """Tick as the agent does until every GPU has answered; two ticks more catch what comes late."""
    deadline, ticks_after = time.monotonic() + _SESSION_S, 0
    tick_ns = time.time_ns()
    while time.monotonic() < deadline and ticks_after < 2 and client.state not in {"absent", "off"}:
        started = time.monotonic()
        for sample in await client.tick(tick_ns):
            facts.readings[sample.metric.name, sample.entity] = sample.value
        ticks_after += client.state == "running" and not _silent(client, facts)
        tick_ns += _TICK_NS
        await asyncio.sleep(max(0.0, min(started + 1.0, deadline) - time.monotonic()))


def _silent(client: DriverClient, facts: Facts) -> list[str]:
    """Return the entities of GPUs that the driver lists and that gave no reading."""
    own = GPU_DRIVER_CALL_SECONDS.name  # how long we waited is no reading of the board
    heard = {name for metric, name in facts.readings if metric != own}
    return [entity.gpu(gpu.uuid) for gpu in client.gpus if gpu.seen and entity.gpu(gpu.uuid) not in heard]


def _judge_session(client: DriverClient, facts: Facts, on_pci: int | None, seconds: float) -> None:
    heard = [gpu for gpu in client.gpus if gpu.seen]
    if client.state == "off":
        facts.unchecked.append(("gpus", "gpu.source is none"))
        return
    if client.state == "absent":
        code = "driver_absent" if on_pci else "driver_none"
        bus = "not known" if on_pci is None else str(on_pci)
        facts.facts.append((code, "node", f"{client.note}; NVIDIA GPUs on the PCI bus: {bus}"))
        facts.unchecked.append(("gpus", client.note))
        return
    facts.checked.append("gpus")
    facts.facts += [("driver_hung", *row) for row in _hanging(client)]
    if client.state == "stuck" or (client.state in _WAITING and not heard):
        evidence = f"driver {client.state} for {seconds:.1f} s: {client.note or 'no answer'}"
        facts.facts.append(("driver_hung", "node", evidence))
        return
    facts.facts += [("gpu_silent", name, f"no reading in {seconds:.1f} s") for name in _silent(client, facts)]
    # An index that the driver counts and does not open leaves a hole.
    expected = max(on_pci or 0, len(client.gpus), *(gpu.index + 1 for gpu in client.gpus), 0)
    if len(heard) < expected:
        evidence = f"{len(heard)} of {expected} answer (PCI bus: {'unknown' if on_pci is None else on_pci})"
        facts.facts.append(("gpu_missing", "node", evidence))


def _hanging(client: DriverClient) -> list[tuple[str, str]]:
    """Return target and evidence of each call that has hung for longer than any healthy one takes."""
    return [
        (
            stuck.entity,
            f"{stuck.call}{f' of GPU index {stuck.index}' if stuck.index >= 0 else ''} "
            f"has not returned for {stuck.seconds:.1f} s",
        )
        for stuck in client.hanging
        if stuck.seconds >= _HUNG_S
    ]
