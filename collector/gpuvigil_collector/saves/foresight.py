"""Saving before it is too late: hardware that begins to fail under a job asks for a checkpoint in its name.

Only with `saves.requests = "auto"`. One request an incident, of the classes that announce worse and leave the
ranks running; never for a drill. The desk refuses what would do harm, as for a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_detectors.training.jobs import Job
from gpuvigil_protos.entity import gpu_uuid_of

CLASSES: Final = frozenset(
    {
        "ecc_corrected_growth", "row_remap_pending", "row_remap_failure", "thermal", "power_brake",
        "nvlink_errors", "pcie_downgrade", "pcie_errors", "nic_flap", "nic_degraded", "disk_failing",
    }
)  # fmt: skip
_KEPT_MAX: Final = 10_000


class Foresight:
    """Looks at open incidents once a tick."""

    def __init__(self, desk: SaveDesk) -> None:
        self._desk = desk
        self._seen: dict[str, None] = {}

    def tick(self, incidents: Iterable[Incident], jobs: Iterable[Job]) -> None:
        """Ask for a checkpoint of each job that a new incident threatens."""
        grave = (one for one in incidents if one.fault_class in CLASSES and not one.synthetic)
        fresh = [one for one in grave if one.id not in self._seen]
        if not fresh:
            return
        known = list(jobs)
        for incident in fresh:
            self._seen[incident.id] = None
            for job in known:
                if threatens(incident, job):
                    self._desk.ask(job.name, incident.id)
        while len(self._seen) > _KEPT_MAX:
            del self._seen[next(iter(self._seen))]


def threatens(incident: Incident, job: Job) -> bool:
    """Whether an incident is about a GPU that a living rank uses, or about the node of one."""
    node, _, local = incident.target.partition("/")
    ranks = [rank for rank in job.living if rank.node == node]
    uuid = gpu_uuid_of(local)
    if uuid is None:
        return bool(ranks)
    told = {rank.gpu for rank in ranks if rank.gpu}
    return uuid in told if told else bool(ranks)
