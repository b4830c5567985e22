"""The truth file: one JSON line for each fault, written at the instant it takes effect.

Only who judges a run reads it. Each line: fault (kind), id (place in the scenario), class, target (full
entity), node, injected_ns, limit_s, and where they apply cleared_ns, link, silent.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from gpuvigil_agent.simulate.fault import GpuFault, Where
from gpuvigil_agent.simulate.faults import (
    DiskFilling,
    DiskSlow,
    DriverCrash,
    DriverHang,
    InterfaceFault,
)
from gpuvigil_agent.simulate.loop_faults import LoopFault, WorkloadImbalance
from gpuvigil_agent.simulate.scenario import Placed
from gpuvigil_agent.simulate.world import World
from gpuvigil_protos import entity
from gpuvigil_protos.settings import ConfigError


def target(world: World, placed: Placed) -> str:
    """The full entity that an honest incident names."""
    fault = placed.fault
    node, local = world.node, entity.NODE
    if isinstance(fault, GpuFault | DriverHang) and fault.gpu is not None:
        local = entity.gpu(world.uuid(fault.gpu))
    elif isinstance(fault, InterfaceFault):
        local = entity.interface(fault.interface)
    elif isinstance(fault, DiskSlow):
        local = entity.disk(fault.disk)
    elif isinstance(fault, DiskFilling):
        local = entity.filesystem(fault.filesystem)
    elif isinstance(fault, LoopFault):
        rank = getattr(fault, "rank", None)
        of_rank = rank is not None and not isinstance(fault, WorkloadImbalance)
        local = entity.rank(fault.job, rank or 0) if of_rank else entity.job(fault.job)
        if not of_rank:  # what is said of a job is said of the node of its rank 0
            node = next(job for job in world.jobs if job.name == fault.job).node_names(world.node)[0]
    return f"{node}/{local}"


def line(world: World, placed: Placed) -> dict[str, Any]:
    """The truth about one fault."""
    fault = placed.fault
    found: dict[str, Any] = {
        "fault": fault.kind,
        "id": placed.number,
        "class": fault.fault_class,
        "target": target(world, placed),
        "node": world.node,
        "injected_ns": placed.start_ns,
        "limit_s": fault.limit_s,
    }
    if placed.end_ns is not None:
        found["cleared_ns"] = placed.end_ns
    if hasattr(fault, "link"):
        found["link"] = fault.link
    if fault.silent:
        found["silent"] = True
    return found


class Truth:
    """Writes this process's part of the truth; a process that restarts does not write a fault twice."""

    def __init__(self, world: World, where: Where) -> None:
        self._world = world
        self._path = Path(world.config.truth_file)
        self._due = sorted(
            (placed for placed in world.faults if placed.fault.where == where), key=lambda p: p.start_ns
        )
        self._stop = threading.Event()

    def start(self) -> threading.Thread | None:
        """Write from a daemon thread, which is returned; None without a truth file or without faults.

        Raises ConfigError when the file cannot be written.
        """
        if self._world.config.truth_file and self._due:
            try:
                self._path.open("a", encoding="utf-8").close()
            except OSError as error:
                raise ConfigError(
                    f"simulate.truth_file: {self._path}: expected a file to append to, got: {error.strerror}"
                ) from None
            thread = threading.Thread(target=self._run, name="truth", daemon=True)
            thread.start()
            return thread
        return None

    def _run(self) -> None:
        began_ns, known = self._world.clock(), self._written()
        for placed in self._due:
            missed_crash = isinstance(placed.fault, DriverCrash) and placed.start_ns <= began_ns
            if placed.number in known or (missed_crash and placed.fault.duration is None):
                continue
            self._wait_until(placed.start_ns)
            self._append(placed)

    def _wait_until(self, time_ns: int) -> None:
        while (left_ns := time_ns - self._world.clock()) > 0:
            self._stop.wait(min(left_ns / 1e9, 60.0))

    def _append(self, placed: Placed) -> None:
        text = json.dumps(line(self._world, placed)) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def _written(self) -> set[int]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        found = (json.loads(text) for text in lines if text)
        return {int(row["id"]) for row in found if row.get("node") == self._world.node}
