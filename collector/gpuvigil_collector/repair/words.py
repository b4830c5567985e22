"""What operators say to the desk; each is checked, done within one tick and written to the journal with who.

All run in the brain's thread, through RepairDesk.ask. UnheardError says what was expected instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal

from gpuvigil_collector.audit import operator_note
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.desk import RepairDesk
from gpuvigil_collector.repair.doubt import Doubt, levels_of
from gpuvigil_collector.repair.marks import Marks, Until
from gpuvigil_detectors.base import FactEvent
from gpuvigil_protos import entity as names
from gpuvigil_protos.text import printable

Word = Callable[[RepairDesk, int], dict[str, Any]]
_SECOND_NS: Final = 1_000_000_000
_WHY_MAX: Final = 300
_HOLDS_MAX_S: Final = 30 * 86400.0
_FOR_EVER_NS: Final = 1 << 62
_XID: Final = re.compile(r"xid=([0-9]{1,4})\Z")
_XID_MAX: Final = 999


class UnheardError(Exception):
    """A word that cannot be followed: field, what was expected, what came."""

    def __init__(self, field: str, expected: str, got: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.body = {"error": {"field": field, "expected": expected, "got": got[:200]}}


def pause(by: str, why: str) -> Word:
    """Stop every action of the fleet, at once; what is under way is seen to its end."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        _marks(desk).paused = Until(by=by, why=_text(why), since_ns=now_ns, until_ns=_FOR_EVER_NS)
        return _told(desk, now_ns, "paused", by, why)

    return word


def resume(by: str, why: str) -> Word:
    """Lift a pause."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        if _marks(desk).paused is None:
            raise UnheardError("pause", "a pause that holds", "none")
        _marks(desk).paused = None
        return _told(desk, now_ns, "resumed", by, why)

    return word


def close_breaker(by: str, why: str) -> Word:
    """Close the storm breaker after a person has looked."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        if not _marks(desk).breaker_ns:
            raise UnheardError("breaker", "one that has tripped", "it is closed")
        _marks(desk).breaker_ns, _marks(desk).breaker_closed_ns = 0, now_ns
        return _told(desk, now_ns, "breaker_closed", by, why)

    return word


def approve(action: str, by: str) -> Word:
    """Approve an action that waits; the kernel judges it once more."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        try:
            return {"id": action, "state": desk.hands.approve(action, by, now_ns).state}
        except KeyError:
            raise UnheardError("action", "one that waits for approval", action) from None
        except PermissionError as denied:
            raise UnheardError("action", "one that the safety kernel allows now", str(denied)) from None

    return word


def reject(action: str, by: str, why: str) -> Word:
    """Reject an action that waits."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        try:
            return {"id": action, "state": desk.hands.reject(action, by, _text(why), now_ns).state}
        except KeyError:
            raise UnheardError("action", "one that waits for approval", action) from None

    return word


def settle(action: str, state: str, by: str, why: str) -> Word:
    """Say how an action ended that nothing here can tell of: a person has looked at the machine."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        if state not in {"done", "failed"}:
            raise UnheardError("what", "done or failed", state)
        if not why.strip():
            raise UnheardError("why", "what was seen on the machine", "nothing")
        as_seen: Literal["done", "failed"] = "done" if state == "done" else "failed"
        try:
            return {"id": action, "state": desk.hands.settle(action, as_seen, by, _text(why), now_ns).state}
        except KeyError:
            raise UnheardError("action", "one that stays ambiguous", action) from None

    return word


def may_start(job: str, node: str, by: str) -> Word:
    """An operator wants a job started: refused while paused or where maintenance is; `avoid`: such nodes."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        state = desk.hands.scenery.state
        _marks(desk)
        if state.paused is None or state.paused:
            got = f"paused: {state.paused}" if state.paused else "not known whether paused"
            raise UnheardError("pause", "no pause", got)
        if state.nodes is None:
            raise UnheardError("fleet", "its state", "the state of the fleet is not known now")
        if node:
            _known(desk, node)
        for case in desk.running:
            if job == case.moving or (job in case.jobs and job not in case.moved):
                got = f"{job} is under repair: case {case.id}"
                raise UnheardError("job", "one that is not under repair", got)
        avoid = [name for name, one in state.nodes.items() if one.maintenance]
        if node in avoid:
            got = f"{node} is under maintenance: {state.nodes[node].maintenance}"
            raise UnheardError("node", "one without maintenance", got)
        return _told(desk, now_ns, "start", by, f"{job} on {node or 'any node'}") | {"avoid": avoid}

    return word


def told(by: str, what: str, why: str) -> Word:
    """Write what became of an operator's wish into the journal."""
    return lambda desk, now_ns: _told(desk, now_ns, what, by, why)


def maintain(node: str, seconds: float, by: str, why: str) -> Word:
    """Set maintenance on a node: recorded, but no alarm, no learning, no action."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        _known(desk, node)
        until = _until(now_ns, seconds, by, why)
        _marks(desk).maintenance[node] = until
        return _told(desk, now_ns, "maintenance", by, f"{node} for {seconds:g} s: {why}") | {
            "node": node, "until_ns": until.until_ns,
        }  # fmt: skip

    return word


def end_maintenance(node: str, by: str, why: str) -> Word:
    """End a node's maintenance before its time."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        if _marks(desk).maintenance.pop(node, None) is None:
            raise UnheardError("node", "one under maintenance of ours", node)
        return _told(desk, now_ns, "maintenance_ended", by, f"{node}: {why}")

    return word


def mark(what: str, incident: str, seconds: float, by: str, why: str) -> Word:
    """Acknowledge or silence an incident for a stated time."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        marks, found = _marks(desk), _open(desk, incident)
        tables = {"acknowledge": marks.acknowledged, "silence": marks.silenced}
        tables[what][found.fingerprint] = _until(now_ns, seconds, by, why)
        return _told(desk, now_ns, what, by, why, incident)

    return word


def doubt(incident: str, seconds: float, by: str, why: str) -> Word:
    """Say that an incident is a false positive: its series are believed less for a while."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        marks, found = _marks(desk), _open(desk, incident)
        until = _until(now_ns, seconds, by, why)
        marks.false_positives_ever += found.fingerprint not in marks.false_positives
        marks.false_positives[found.fingerprint] = Doubt(
            by=by, why=until.why, since_ns=now_ns, until_ns=until.until_ns, levels=levels_of(found.findings)
        )
        return _told(desk, now_ns, "false_positive", by, why, incident)

    return word


def drill(node: str, what: str, by: str) -> Word:
    """Rehearse a fault end to end: a synthetic Xid, judged as a real one, that never reaches an actuator."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        found = _XID.match(what)
        if found is None or int(found[1]) > _XID_MAX:
            raise UnheardError("what", "xid=NUMBER", what)
        _known(desk, node)
        nodes = desk.hands.scenery.state.nodes
        gpus = nodes[node].gpu_uuids if nodes is not None else ()
        if not gpus:
            raise UnheardError("node", "a node with GPUs", node)
        event = FactEvent(
            node=node, time_ns=now_ns, kind="xid", origin="driver", entity=names.gpu(gpus[0]),
            code=int(found[1]), text=f"drill by {by}", synthetic=True,
        )  # fmt: skip
        desk.drills.append(event)
        return _told(desk, now_ns, "drill", by, f"{what} on {node}") | {
            "node": node,
            "gpu": gpus[0],
            "at_ns": now_ns,
        }

    return word


def _open(desk: RepairDesk, incident: str) -> Incident:
    found = desk.hands.scenery.open.get(incident)
    if found is None:
        raise UnheardError("incident", "an open incident", incident)
    return found


def give_back(node: str, by: str) -> Word:
    """A person says that a node we hold is mended: prove it and return it."""

    def word(desk: RepairDesk, now_ns: int) -> dict[str, Any]:
        held = [case for case in desk.kept.cases.values() if case.held and case.node == node]
        if not held or not held[-1].ended:
            raise UnheardError("node", "one that we hold and that waits for a person", node)
        _again(held[-1])
        _marks(desk).cleared[node] = now_ns
        return _told(desk, now_ns, "return_asked", by, node, held[-1].incident)

    return word


def _again(case: Case) -> None:
    case.playbook, case.outcome, case.ended_ns, case.step = "return_node", "", 0, -1
    case.next_step()


def _marks(desk: RepairDesk) -> Marks:
    if desk.kept.marks is None:
        raise UnheardError("marks", "a readable record", desk.kept.records.fault or "one that is not")
    return desk.kept.marks


def _known(desk: RepairDesk, node: str) -> None:
    nodes = desk.hands.scenery.state.nodes
    if not names.is_valid_node_name(node) or (nodes is not None and node not in nodes):
        raise UnheardError("node", "a node of `gpuvigil nodes`", node)


def _until(now_ns: int, seconds: float, by: str, why: str) -> Until:
    if not 0 < seconds <= _HOLDS_MAX_S:
        raise UnheardError("seconds", "more than 0 and at most 30 days", f"{seconds:g}")
    return Until(by=by, why=_text(why), since_ns=now_ns, until_ns=now_ns + int(seconds * _SECOND_NS))


def _text(why: str) -> str:
    return printable(why[:_WHY_MAX])


def _told(desk: RepairDesk, now_ns: int, what: str, by: str, why: str, incident: str = "") -> dict[str, Any]:
    desk.hands.note([operator_note(now_ns, by, what, _text(why), incident)])
    return {"done": what, "by": by}
