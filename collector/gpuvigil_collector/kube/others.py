"""Whose marks stand on a node: maintenance of others, other remediators, and whom it belongs to.

The table of marks is data (data/others.toml). A node whose owner split it by the label SPLIT is repaired by
the one it names, whatever else is seen on it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Final, Literal

import msgspec

from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_collector.kube.objects import Node
from gpuvigil_protos import settings

OPT_OUT: Final = "gpuvigil.io/opt-out"
"""Label of a node that gpuvigil must never touch; any value but "false"."""
SPLIT: Final = "gpuvigil.io/remediator"
"""Label that says who repairs a node: "gpuvigil", or another's name."""
OURSELVES: Final = "gpuvigil"
_CONTROL_PLANE: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_SHOWN_MAX: Final = 60


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of others.toml."""

    where: Literal["label", "annotation", "taint", "condition"]
    key: str
    means: Literal["maintenance", "remediator"]
    who: str
    why: str
    value: str = ""

    def fits(self, key: str, value: str) -> bool:
        """Return whether this mark is the one that stands there."""
        named = key.startswith(self.key[:-1]) if self.key.endswith("*") else key == self.key
        return named and (not self.value or re.fullmatch(self.value, value) is not None)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mark: list[Mark]


@cache
def marks() -> tuple[Mark, ...]:
    """Return the table of others' marks."""
    text = (resources.files("gpuvigil_collector.kube") / "data" / "others.toml").read_text("utf-8")
    return tuple(settings.convert(tomllib.loads(text), _Table, "others.toml").mark)


def maintenance(node: Node) -> str:
    """Return whose maintenance the node is under and why, "" for none."""
    found = next(_found(node, "maintenance"), None)
    if found is not None:
        return found
    return "Kubernetes: the node is being deleted" if node.metadata.deletion_timestamp else ""


def seen_remediator(node: Node) -> str:
    """Return which other remediator left a mark here, whoever the node belongs to; "" for none."""
    mark = next((one for one, _ in _standing(node) if one.means == "remediator"), None)
    return mark.who if mark else ""


def remediator(node: Node) -> str:
    """Return who else repairs this node, "" when it is ours."""
    owner = node.metadata.labels.get(SPLIT, "")
    if owner:
        return "" if owner == OURSELVES else _shown(owner)
    return next(_found(node, "remediator"), "")


def unsplit_remediator(nodes: Iterable[Node]) -> str:
    """Return another remediator seen on the fleet whose nodes are not all split from ours, "" for none.

    It is split when every node says by label who repairs it.
    """
    every = list(nodes)
    seen = next((who for who in map(seen_remediator, every) if who), "")
    if not seen or all(node.metadata.labels.get(SPLIT) for node in every):
        return ""
    missing = sum(1 for node in every if not node.metadata.labels.get(SPLIT))
    return f"{seen} (label {SPLIT} is missing on {missing} of {len(every)} nodes)"


def protected(node: Node) -> str:
    """Return why the node is never touched, "" for no reason."""
    labels = node.metadata.labels
    if labels.get(OPT_OUT, "false").lower() != "false":
        return f"label {OPT_OUT}"
    keys = {*labels, *(taint.key for taint in node.spec.taints)}
    return next((f"control plane ({key})" for key in _CONTROL_PLANE if key in keys), "")


def _found(node: Node, means: str) -> Iterator[str]:
    for mark, value in _standing(node):
        if mark.means == means:
            yield f"{mark.who}: {mark.why}" + (f" ({_shown(value)})" if value else "")


def _standing(node: Node) -> Iterator[tuple[Mark, str]]:
    places: dict[str, list[tuple[str, str]]] = {
        "label": list(node.metadata.labels.items()),
        "annotation": list(node.metadata.annotations.items()),
        "taint": [(taint.key, taint.value) for taint in node.spec.taints],
        "condition": [(one.type, one.reason) for one in node.status.conditions if one.status == "True"],
    }
    for mark in marks():
        for key, value in places[mark.where]:
            if mark.fits(key, value):
                yield mark, value


def _shown(value: str) -> str:
    return clean_text(value[:_SHOWN_MAX])
