"""Failure domains from Slurm's topology, and maintenance from its reservations.

Source: `scontrol --oneliner show topology` (topology.conf) and `show reservation`: what operators write, not
users. The leaf switch (Level=0), or the block, is the domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from gpuvigil_collector.slurm import hostlist
from gpuvigil_collector.slurm.records import NonsenseError, clean

_LEAF: Final = re.compile(
    r"SwitchName=(\S+) Level=0 (?:\S+ )*?Nodes=(\S+)|BlockName=(\S+) (?:\S+ )*?Nodes=(\S+)"
)
_RESERVATION: Final = re.compile(
    r"ReservationName=(\S+) StartTime=\S+ .*? Nodes=(\S*) .*? Flags=(\S*) (?:.*? )?State=(\S+)"
)
_NONE: Final = ("No reservations in the system", "No topology information available")


def domains(text: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return node -> failure domain, and what is wrong with the topology.

    A node below two leaf switches has no domain: the safety kernel then counts it with all that have none.
    """
    found: dict[str, str] = {}
    troubles: list[str] = []
    for line in _lines(text):
        if (match := _LEAF.match(line)) is None:
            continue
        name, nodes = clean(match[1] or match[3]), match[2] or match[4]
        for node in _expanded(nodes):
            if found.setdefault(node, name) != name:
                troubles.append(f"topology: {node} is below {found[node] or 'two switches'} and below {name}")
                found[node] = ""
    return {node: name for node, name in found.items() if name}, tuple(troubles)


def maintenance(text: str) -> Mapping[str, str]:
    """Return node -> name of the reservation with MAINT that is active now. Raises NonsenseError."""
    found: dict[str, str] = {}
    for line in _lines(text):
        if (match := _RESERVATION.match(line)) is None:
            raise NonsenseError(
                f"reservation: expected ReservationName=, Nodes=, Flags=, State=, got {clean(line)!r}"
            )
        if "MAINT" in match[3].split(",") and match[4] == "ACTIVE":
            found.update(dict.fromkeys(_expanded(match[2]), clean(match[1])))
    return found


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_NONE))


def _expanded(nodes: str) -> tuple[str, ...]:
    try:
        return hostlist.expand(nodes)
    except hostlist.BadHostlistError as error:
        raise NonsenseError(str(error)) from error
