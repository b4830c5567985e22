"""All of repair that has threads and files: store, lease, executor, readings of schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gpuvigil_collector import execute
from gpuvigil_collector.action_store import ActionStore
from gpuvigil_collector.attempt import Attempt
from gpuvigil_collector.config import CollectorConfig
from gpuvigil_collector.ingest import frames
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.lease import RenewedLease
from gpuvigil_collector.lease_file import SqliteLease
from gpuvigil_collector.repair.begin import JobStart
from gpuvigil_collector.repair.build import Senses, make_repair
from gpuvigil_collector.repair.calls import AgentCalls
from gpuvigil_collector.repair.schedulers import KubernetesScheduler, Scheduler, SlurmScheduler
from gpuvigil_collector.repair.stage import Repair
from gpuvigil_collector.safety_facts import MODES
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_detectors.base import Snapshot
from gpuvigil_protos import pause

_STOP_S: Final = 5.0


class Plant:
    """Make it, `start` it, `stop` it at the end. on_end: gets the bug that ended the executor, or None."""

    def __init__(
        self, config: CollectorConfig, state: Path, *, saves: SaveDesk, journal: Journal,
        send: Callable[[frames.Command], None], snapshot: Callable[[], Snapshot | None],
    ) -> None:  # fmt: skip
        settings = config.remediation
        self.calls = AgentCalls(send)
        self.store = ActionStore(state)
        self.lease = lease_of(config, state)
        self.scheduler = scheduler_of(config)
        self.on_end: Callable[[BaseException | None], None] = lambda _: None
        attempt = Attempt(store=self.store, lease=self.lease, paused=self._paused)
        self.executor = execute.make(
            self.store, attempt, self._ended, settings=config.actuators,
            agent=self.calls, slurm=config.slurm if settings.scheduler == "slurm" else None,
            held=lambda: None if self._paused() != "" else self.repair.held(),
        )  # fmt: skip
        scheduler = self.scheduler
        self.repair: Repair = make_repair(
            settings, state, records=self.store, executor=self.executor, saves=saves, journal=journal,
            senses=Senses(
                fence=self.lease.fence, snapshot=snapshot, paused=pause.paused,
                scheduler=scheduler.view if scheduler is not None else lambda: None,
            ),
        )  # fmt: skip

        self.starts = JobStart(self.executor, self.repair.desk.ask, self.lease.fence)

    def _paused(self) -> str | None:
        """Ours, a file's, or one that was made in the scheduler; None when any of it cannot be told."""
        said = self.repair.is_paused()
        if said or said is None or self.scheduler is None:
            return said
        view = self.scheduler.view()
        return view.paused if view is not None else None

    def _ended(self, bug: BaseException | None) -> None:
        self.on_end(bug)

    def start(self) -> None:
        """Take the lease where it is free, take up what an earlier run left."""
        self.lease.start()
        self.executor.start()

    def stop(self) -> None:
        """End the threads; an action in progress is looked at by the next run."""
        self.executor.stop(_STOP_S)
        if self.scheduler is not None:
            self.scheduler.stop()
        self.lease.stop()
        self.store.close()

    def faults(self) -> list[str]:
        """Sentences on what is wrong now."""
        trouble = self.scheduler.trouble() if self.scheduler is not None else ""
        return [*self.executor.faults(), *([f"scheduler: {trouble}"] if trouble else [])]


def scheduler_of(config: CollectorConfig) -> Scheduler | None:
    """Make the reading of the site's scheduler; None where there is none. Raises ConfigError."""
    kubernetes = config.actuators.kubernetes
    if config.remediation.scheduler == "kubernetes" and kubernetes is not None:
        return KubernetesScheduler(kubernetes)
    if config.remediation.scheduler != "slurm":
        return None
    modes = config.remediation.partition_modes
    strictest_first = sorted(modes, key=lambda name: (MODES.index(modes[name]), name))
    return SlurmScheduler(config.slurm, partitions=strictest_first)


def lease_of(config: CollectorConfig, state: Path) -> RenewedLease:
    """Make the right to act: the cluster's own Lease on Kubernetes, else a file. Raises ConfigError."""
    kubernetes = config.actuators.kubernetes
    if config.remediation.scheduler == "kubernetes" and kubernetes is not None:
        from gpuvigil_collector.kube import api, lease  # noqa: PLC0415 - an extra's libraries

        client = api.KubeApi(api.connection(kubernetes.kubeconfig), call_s=kubernetes.call_timeout)
        return lease.KubernetesLease(client, kubernetes.namespace)
    return SqliteLease(Path(config.remediation.lease or state / "lease.sqlite"))
