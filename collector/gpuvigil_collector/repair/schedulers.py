"""The site's scheduler as repair sees it: one reading for the kernel, and the actuators that go with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from gpuvigil_collector.action import NodeState
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_collector.repair.fleet import SchedulerView
from gpuvigil_collector.slurm.client import SlurmClient
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.slurm.view import SlurmView
from gpuvigil_collector.slurm.watch import SlurmWatch

_KUBE_EVERY_S: Final = 10.0
_PAUSE_EVERY_S: Final = 2.0
_PAUSE_STALE_S: Final = 10.0


class Scheduler(Protocol):
    """Read in threads of its own; `view` answers at once. trouble: why it cannot be read, "" while it can."""

    def view(self) -> SchedulerView | None:
        """Return the newest reading; None while there is none that is fresh."""
        ...

    def trouble(self) -> str:
        """Say what is wrong with the reading."""
        ...

    def stop(self) -> None:
        """End the threads."""
        ...


class SlurmScheduler:
    """Slurm, by its own programs. partitions: those with a mode of their own, the strictest first."""

    def __init__(
        self,
        settings: SlurmSettings,
        clock: Callable[[], int] = time.time_ns,
        partitions: Sequence[str] = (),
    ) -> None:
        self._settings, self._clock, self._partitions = settings, clock, partitions
        self._watch = SlurmWatch(
            SlurmClient(folder=settings.folder),
            settings.interval,
            settings.deadline,
            settings.opt_in == "all",
        )
        self._made: tuple[SlurmView, SchedulerView] | None = None
        self._watch.start()

    def view(self) -> SchedulerView | None:
        """Return the newest reading; None while there is none that is fresh."""
        found = self._watch.state.fresh(self._clock(), self._settings.stale)
        if found is None:
            return None
        if self._made is None or self._made[0] is not found:
            jobs = {name: state for name in found.jobs if (state := found.job_state(name)) is not None}
            adds = partial(found.node_state, configured=self._partitions)
            self._made = found, SchedulerView(at_ns=found.at_ns, adds=adds, jobs=jobs)
        return self._made[1]

    def trouble(self) -> str:
        """Say what is wrong with the reading, or what Slurm's own configuration contradicts."""
        state = self._watch.state
        return state.trouble or "; ".join(state.view.troubles if state.view is not None else ())

    def stop(self) -> None:
        """End the thread."""
        self._watch.stop()


class KubernetesScheduler:
    """Kubernetes, by its API; read in a thread of its own at an interval.

    A large cluster takes its time, and a pause must not: a second thread reads the annotation alone.
    """

    def __init__(self, settings: KubernetesSettings, clock: Callable[[], int] = time.time_ns) -> None:
        from gpuvigil_collector.kube import api, view  # noqa: PLC0415 - an extra's libraries

        self._settings, self._clock = settings, clock
        self._read, self._read_pause = view.read, view.read_pause
        config = api.connection(settings.kubeconfig)
        self._api, self._pause_api = (api.KubeApi(config, call_s=settings.call_timeout) for _ in range(2))
        self._error: type[Exception] = api.KubeError
        self._paused, self._paused_s = "", float("-inf")
        self._newest: SchedulerView | None = None
        self._trouble = "kubernetes: not read yet"
        self._stopping = threading.Event()
        loops = {"kubernetes-watch": self._loop, "kubernetes-pause": self._watch_pause}
        self._threads = [threading.Thread(target=loop, name=n, daemon=True) for n, loop in loops.items()]
        for thread in self._threads:
            thread.start()

    def view(self) -> SchedulerView | None:
        """Return the newest reading; None while there is none that is fresh."""
        newest = self._newest
        stale_ns = 2 * int((_KUBE_EVERY_S + self._settings.read_deadline) * 1e9)
        if newest is None or not 0 <= self._clock() - newest.at_ns <= stale_ns:
            return None
        known = time.monotonic() - self._paused_s <= _PAUSE_STALE_S
        return replace(newest, paused=self._paused if known else "the pause annotation cannot be read")

    def trouble(self) -> str:
        """Say why the last reading failed, "" when it did not."""
        return self._trouble

    def stop(self) -> None:
        """End the threads; a reading in progress has its deadline."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._settings.read_deadline + 1)

    def _watch_pause(self) -> None:
        while not self._stopping.is_set():
            asked_s = time.monotonic()
            with suppress(self._error):  # the other reading tells it; what is not known pauses after a while
                self._paused = self._read_pause(self._pause_api, self._settings)
                self._paused_s = asked_s
            self._stopping.wait(_PAUSE_EVERY_S)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                found = self._read(self._api, self._settings)
            except self._error as error:
                self._trouble = f"kubernetes: {error}"
            else:
                self._trouble = ""
                self._newest = SchedulerView(
                    at_ns=found.read_ns, adds=partial(with_kubernetes, found.nodes), jobs=found.jobs,
                    others=found.others, pods=pods_of(found.job_pods),
                )  # fmt: skip
            self._stopping.wait(_KUBE_EVERY_S)


def pods_of(job_pods: Mapping[str, Sequence[tuple[str, str, str, str]]]) -> dict[str, str]:
    """Return job by pod uid, the uid without its dashes, of (namespace, name, uid, node) by job."""
    return {uid.replace("-", ""): job for job, pods in job_pods.items() for _, _, uid, _ in pods}


def with_kubernetes(nodes: Mapping[str, NodeState], state: NodeState) -> NodeState:
    """Return our node with what the cluster says of it; as it was where the cluster has no such node."""
    told = nodes.get(state.node)
    if told is None:
        return state
    return replace(
        state, partition=told.partition, domain=told.domain or state.domain, dead=state.silent and told.dead,
        maintenance=state.maintenance or told.maintenance, hold=told.hold, held_why=told.held_why,
        remediator=told.remediator, protected=told.protected,
        jobs=tuple(sorted({*state.jobs, *told.jobs})),
    )  # fmt: skip
