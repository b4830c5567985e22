"""What a node's state in Slurm means: who holds it, and whether others work on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gpuvigil_collector.slurm import gres, records
from gpuvigil_collector.slurm import reason as reasons

MAINTENANCE: Final[Mapping[str, str]] = {
    "MAINTENANCE": "in a maintenance reservation",
    "DOWN": "set down",
    "POWER_DOWN": "is to be powered down",
    "POWERING_DOWN": "is powered down",
    "POWERED_DOWN": "is powered down",
    "POWERING_UP": "is powered up",
    "REBOOT_REQUESTED": "waits for a reboot",
    "REBOOT_ISSUED": "reboots",
    "PLANNED": "planned for a job",
    "FAIL": "set to fail",
    "FAILING": "set to fail",
    "FUTURE": "does not exist yet",
}
"""States in which others work on a node: gpuvigil records, and neither alarms nor acts."""
_SLURMS_OWN_DOWN: Final = ("Not responding", "Node unexpectedly rebooted")
"""slurmctld writes these itself: an observation, nobody's maintenance."""
_KILL_TASK: Final = "Kill task failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmNode:
    """One node. flags: every word of its state, in capitals. changed_s: when its reason was written.

    unresponsive: slurmctld set it down itself, for
    it hears nothing of its slurmd. maintenance: whose and why, "" for none.
    """

    name: str
    hostname: str
    address: str
    partitions: tuple[str, ...]
    gpus: int
    flags: frozenset[str]
    reason: str
    reason_by: str
    changed_s: int
    hold: Literal["none", "ours", "foreign"] = "none"
    maintenance: str = ""
    unresponsive: bool = False
    domain: str = ""
    jobs: tuple[str, ...] = ()

    @property
    def mark(self) -> reasons.Mark | None:
        """Our mark, where the node is drained by us."""
        return reasons.parse(self.reason) if "DRAIN" in self.flags else None

    @property
    def token(self) -> str:
        """Tells this state from any other: what was written, by whom and when."""
        drained = "drain" if "DRAIN" in self.flags else "no drain"
        return f"{drained}; {self.reason or 'no reason'}; {self.reason_by or 'nobody'}; {self.changed_s}"


Hosts = Mapping[str, Sequence["SlurmNode"]]


def by_host(nodes: Mapping[str, SlurmNode]) -> Hosts:
    """Return the nodes by the host that they run on: several may share one."""
    found: dict[str, list[SlurmNode]] = {}
    for node in nodes.values():
        found.setdefault(node.hostname, []).append(node)
    return found


def find(nodes: Mapping[str, SlurmNode], name: str, hosts: Hosts | None = None) -> SlurmNode | None:
    """Return the node that gpuvigil calls `name`: Slurm's name, its short form, or the one on that host.

    hosts: `by_host` of the nodes, where it is at hand.
    """
    short = name.partition(".")[0]
    if (found := nodes.get(name) or nodes.get(short)) is not None:
        return found
    hosts = by_host(nodes) if hosts is None else hosts
    there = [node for host in {name, short} for node in hosts.get(host, ())]
    return there[0] if len(there) == 1 else None


def read(
    record: records.NodeRecord, reservation: str = "", domain: str = "", jobs: tuple[str, ...] = ()
) -> SlurmNode:
    """Make a node of what Slurm says; `reservation` is the maintenance reservation that it is in."""
    flags = records.words(record.state) | records.words(record.state_flags)
    drained = "DRAIN" in flags
    # the reason as it is: ours is compared to the letter, and what people see is cleaned there
    ours = drained and reasons.parse(record.reason) is not None
    return SlurmNode(
        name=record.name,
        hostname=record.hostname,
        address=record.address,
        partitions=tuple(record.partitions),
        gpus=gres.count(record.gres),
        flags=flags,
        reason=record.reason if ours else records.clean(record.reason),
        reason_by=records.clean(record.reason_set_by_user or ""),
        changed_s=records.number(record.reason_changed_at),
        hold=("ours" if ours else "foreign") if drained else "none",
        maintenance=_maintenance(flags, records.clean(record.reason), reservation),
        unresponsive="DOWN" in flags and record.reason.startswith(_SLURMS_OWN_DOWN),
        domain=domain,
        jobs=jobs,
    )


def _maintenance(flags: frozenset[str], why: str, reservation: str) -> str:
    """Whose maintenance it is and why; "" for none."""
    if reservation:
        return f"slurm: reservation {reservation}"
    for flag in MAINTENANCE:
        if flag in flags and not (flag == "DOWN" and why.startswith(_SLURMS_OWN_DOWN)):
            return f"slurm: {MAINTENANCE[flag]} ({flag}{f': {why}' if why else ''})"
    if "DRAIN" in flags and _KILL_TASK.lower() in why.lower():
        return f"slurm: {why}"
    return ""
