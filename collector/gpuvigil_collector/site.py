"""The site's file: which nodes share a switch, a rack, a supply; one name a node, one table a domain.

    version = 1
    [domain.rack-a]
    nodes = ["n1", "n2"]

A node in two domains contradicts itself and is refused. Without a file, the scheduler's word counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from gpuvigil_protos import entity as names
from gpuvigil_protos import settings
from gpuvigil_protos.settings import ConfigError

_NODES_MAX: Final = 20_000


class Domain(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Nodes that one fault may take down together."""

    nodes: list[str]


class Site(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The whole file."""

    version: Literal[1]
    domain: dict[str, Domain]


def load(path: Path) -> dict[str, str]:
    """Return the failure domain of each node that the file names. Raises ConfigError."""
    site = settings.load(path, Site)
    found: dict[str, str] = {}
    for name, domain in site.domain.items():
        for node in domain.nodes:
            if not names.is_valid_node_name(node):
                raise ConfigError(f"{path}: domain.{name}.nodes: expected a node's name, got {node[:80]!r}")
            if node in found:
                where = f"{path}: domain.{name}.nodes"
                raise ConfigError(f"{where}: expected one domain a node, got {node} in {found[node]} too")
            found[node] = name
    if len(found) > _NODES_MAX:
        raise ConfigError(f"{path}: expected at most {_NODES_MAX} nodes, got {len(found)}")
    return found
