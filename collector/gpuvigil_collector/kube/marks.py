"""Our marks on a node: what a hold writes, what of it still stands, and what a release may take back.

A hold is a cordon, one NoSchedule taint and the annotations below, written in one patch that carries the
resourceVersion that was judged: if anybody changed the node meanwhile, the server refuses. Pure: no call.

Whose cordon it is: the annotations say that we cordoned, managedFields say who changed spec.unschedulable
last. Somebody who uncordons and cordons again makes it theirs; we then leave it. `kubectl cordon` of a node
that is cordoned already changes nothing and leaves no trace, so that wish cannot be seen: see docs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_collector.kube.api import FIELD_MANAGER, KubeError
from gpuvigil_collector.kube.objects import Node, Taint
from gpuvigil_collector.kube.settings import TAINT_KEY

PREFIX: Final = "gpuvigil.io/"
BY: Final = PREFIX + "cordon-by"
INCIDENTS: Final = PREFIX + "cordon-incidents"
REASON: Final = PREFIX + "cordon-reason"
GENERATION: Final = PREFIX + "cordon-generation"
TIMESTAMP: Final = PREFIX + "cordon-timestamp"
ACTION: Final = PREFIX + "cordon-action"
ANNOTATIONS: Final = (BY, INCIDENTS, ACTION, REASON, GENERATION, TIMESTAMP)
TAINT_VALUE: Final = "held"
_INCIDENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
_INCIDENTS_MAX: Final = 20
_REASON_MAX: Final = 200

Standing = Literal["none", "ours", "taken", "foreign"]
"""none: the node takes work. ours: our hold stands. taken: our annotations stand, cordon or taint were taken
off or changed by somebody. foreign: held, and not by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What our annotations say. incidents: each holds the node; it goes back with the last.

    action: the id of the action that wrote last.
    """

    by: str
    incidents: tuple[str, ...]
    action: str
    reason: str
    generation: int
    since: str


def held(node: Node) -> Held | None:
    """Read our annotations, None for none. Raises KubeError when they are incomplete or altered."""
    said = node.metadata.annotations
    if not any(key in said for key in ANNOTATIONS):
        return None
    generation = said.get(GENERATION, "")
    incidents = tuple(said.get(INCIDENTS, "").split(","))
    if not generation.isdecimal() or len(generation) > 18:
        raise KubeError(f"{node.metadata.name}: {GENERATION}: expected a number, got {generation[:80]!r}")
    if not all(map(_INCIDENT.match, incidents)):
        raise KubeError(f"{node.metadata.name}: {INCIDENTS}: expected incident ids, got {incidents!r}"[:200])
    return Held(
        by=clean_text(said.get(BY, "")[:_REASON_MAX]),
        incidents=incidents,
        action=clean_text(said.get(ACTION, "")[:_REASON_MAX]),
        reason=clean_text(said.get(REASON, "")[:_REASON_MAX]),
        generation=int(generation),
        since=clean_text(said.get(TIMESTAMP, "")[:_REASON_MAX]),
    )


def standing(node: Node, taint_key: str = TAINT_KEY) -> Standing:
    """Say who keeps new work off the node. Raises KubeError when our annotations make no sense."""
    keyed = [taint for taint in node.spec.taints if taint.key == taint_key]
    if held(node) is None:
        foreign = node.spec.unschedulable or not all(map(_is_ours, keyed))
        return "foreign" if foreign else "none"
    return "ours" if node.spec.unschedulable and any(map(_is_ours, keyed)) else "taken"


def tainted(node: Node, taint_key: str = TAINT_KEY) -> bool:
    """Return whether our very taint stands, with marks of ours or without."""
    return any(one.key == taint_key and _is_ours(one) for one in node.spec.taints)


def taint_patch(node: Node, taint_key: str = TAINT_KEY) -> dict[str, Any] | None:
    """Return what makes the taint agree with our annotations again, None when it does.

    Kubernetes' own node controller, up to 1.20, writes the list of taints as it last saw it, without a
    version: it brings back a taint that was just taken away, or drops one that was just set.
    """
    wanted = held(node) is not None and node.spec.unschedulable
    if held(node) is not None and not node.spec.unschedulable:
        return None  # somebody took the cordon off: that is for people
    if wanted == tainted(node, taint_key):
        return None
    if wanted and any(one.key == taint_key for one in node.spec.taints):
        return None  # somebody changed ours
    return _patch(node, {}, {"taints": _taints(node, taint_key, add=wanted)})


def reacted(node: Node) -> bool:
    """Return whether the node controller has seen what was done to the cordon: its own taint says so."""
    theirs = any(one.key == "node.kubernetes.io/unschedulable" for one in node.spec.taints)
    return theirs == node.spec.unschedulable


def cordon_is_ours(node: Node) -> bool:
    """Return whether we alone last set spec.unschedulable. Without managedFields nobody can tell: False."""
    managers = {
        one.manager
        for one in node.metadata.managed_fields
        if "f:unschedulable" in _tree(one.fields_v1.get("f:spec"))
    }
    return managers == {FIELD_MANAGER}


def hold_patch(node: Node, entry: Held, taint_key: str = TAINT_KEY) -> dict[str, Any]:
    """Return the patch that holds the node for entry's one incident, besides those it is held for already.

    Raises KubeError for an incident id that is none, and for more incidents than a node can hold.
    """
    before = held(node)
    incidents = (*(before.incidents if before else ()), *entry.incidents)
    if not all(map(_INCIDENT.match, entry.incidents)) or len(incidents) > _INCIDENTS_MAX:
        raise KubeError(f"incident: expected an id, of {_INCIDENTS_MAX} at most, got {incidents!r}"[:200])
    said = replace(entry, incidents=tuple(dict.fromkeys(incidents)))
    if before is not None:  # the first hold's words stay; whoever comes later adds an incident
        more = replace(before, incidents=said.incidents, action=said.action, generation=said.generation)
        return _patch(node, _annotations(more))
    spec = {"unschedulable": True, "taints": _taints(node, taint_key, add=True)}
    return _patch(node, _annotations(said), spec)


def release_patch(node: Node, incident: str, generation: int, taint_key: str = TAINT_KEY) -> dict[str, Any]:
    """Return the patch that takes back one incident's hold, and with the last incident all that is ours.

    Never touches another's taint, nor a cordon that somebody else has set since.
    """
    now = held(node)
    rest = tuple(one for one in (now.incidents if now else ()) if one != incident)
    if now is not None and rest:
        return _patch(node, _annotations(replace(now, incidents=rest, generation=generation)))
    return withdraw_patch(node, taint_key)


def withdraw_patch(node: Node, taint_key: str = TAINT_KEY) -> dict[str, Any]:
    """Return the patch that takes all away that is ours, whatever it is held for."""
    spec: dict[str, Any] = {}
    if tainted(node, taint_key):
        spec["taints"] = _taints(node, taint_key, add=False)
    if node.spec.unschedulable and cordon_is_ours(node):
        spec["unschedulable"] = None
    return _patch(node, dict.fromkeys(ANNOTATIONS), spec)


def new_entry(*, by: str, incident: str, action: str, reason: str, generation: int, now_ns: int) -> Held:
    """Return what a hold for one incident says."""
    return Held(
        by=clean_text(by[:_REASON_MAX]),
        incidents=(incident,),
        action=clean_text(action[:_REASON_MAX]),
        reason=clean_text(reason[:_REASON_MAX]),
        generation=generation,
        since=stamp(now_ns),
    )


def stamp(now_ns: int) -> str:
    """Return a time as the API writes it."""
    return datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _annotations(entry: Held) -> dict[str, str | None]:
    return {
        BY: entry.by,
        INCIDENTS: ",".join(entry.incidents),
        ACTION: entry.action,
        REASON: entry.reason,
        GENERATION: str(entry.generation),
        TIMESTAMP: entry.since,
    }


def _patch(
    node: Node, annotations: Mapping[str, str | None], spec: dict[str, Any] | None = None
) -> dict[str, Any]:
    meta: dict[str, Any] = {"resourceVersion": node.metadata.resource_version}
    meta |= {"annotations": dict(annotations)} if annotations else {}
    return {"metadata": meta} | ({"spec": spec} if spec else {})


def _taints(node: Node, taint_key: str, *, add: bool) -> list[Any] | None:
    """Return the node's taints with ours or without, as the API writes them; None for none."""
    kept = [one for one in node.spec.taints if not (one.key == taint_key and _is_ours(one))]
    ours = [Taint(key=taint_key, value=TAINT_VALUE, effect="NoSchedule")] if add else []
    return list(msgspec.to_builtins([*kept, *ours])) or None


def _is_ours(taint: Taint) -> bool:
    return taint.value == TAINT_VALUE and taint.effect == "NoSchedule"


def _tree(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
