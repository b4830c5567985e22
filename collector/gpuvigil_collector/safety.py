"""The safety kernel: may this be done to this node or job, now? The only place where an action is authorised.

Pure: no clock, no I/O, no memory. Eleven gates in a fixed order, all of them evaluated; the first that denies
names the denial. What is unknown, missing, malformed or contradicts itself denies, and nothing raises. The
mode is no part of the decision: it only says what becomes of it (`Verdict.effect`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

from gpuvigil_protos import entity as names

from .action import HARMLESS, INTERRUPTS, NEEDS_HOLD, ON_JOB, Fence, FleetState, Gate, Proposal, Verdict
from .safety_budgets import compare
from .safety_evidence import origins_of, signals_of
from .safety_facts import KINDS, MODES, Question, inventory_of
from .safety_limits import checked_limits
from .safety_storm import storm_of
from .safety_values import SECOND_NS, Unknown, count, part, shown, text

PLACEHOLDERS: Final = frozenset(
    {"none", "null", "nil", "nan", "undefined", "unknown", "all", "any", "every", "true", "false"}
)
"""What a missing value becomes when somebody prints it: never a target."""
WITHOUT_EVIDENCE: Final = frozenset({"validate", "release"})
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,127}\Z")
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def _gate(name: str, passed: bool, detail: str) -> Gate:
    return Gate(name=name, passed=passed, detail=detail)


def _mode_of(question: Question) -> str:
    """The most cautious mode of all that the proposal touches; raises Unknown."""
    modes = question.state.partition_modes
    if not isinstance(modes, Mapping):
        raise Unknown("the partitions' modes are not known")
    for mode in (question.state.mode, *modes.values()):
        if mode not in MODES:
            raise Unknown(f"mode is {shown(mode)}: not one of {', '.join(MODES)}")
    here = {modes.get(node.partition, question.state.mode) for node in question.around()}
    return min((str(mode) for mode in here or {question.state.mode}), key=MODES.index)


def _mode(question: Question) -> Gate:
    _mode_of(question)
    return _gate("mode", True, "the mode is known")


def _pause(question: Question) -> Gate:
    paused = text(question.state.paused, "whether we are paused")
    return _gate("pause", not paused, f"paused: {shown(paused)}" if paused else "not paused")


def _maintenance(question: Question) -> Gate:
    """A node that the inventory does not have is in nobody's maintenance: the next gate refuses it."""
    text(question.proposal.node, "the target's node")
    if question.proposal.node not in question.fleet:
        return _gate("maintenance", True, "no such node")
    under = [f"{node.node}: {shown(node.maintenance)}" for node in question.around() if node.maintenance]
    return _gate("maintenance", not under, "; ".join(under[:3]) if under else "nobody's maintenance")


def _named(what: str, value: object, valid: Callable[[str], bool]) -> str:
    name = text(value, what)
    if not valid(name) or name.lower() in PLACEHOLDERS:
        raise Unknown(f"{what} is {shown(name)}: not one full name")
    return name


def _is_job(name: str) -> bool:
    """Tell whether it is one job's full name, its own or the scheduler's; no part of it is a blank."""
    blank = any(word.lower() in PLACEHOLDERS for word in name.split("/"))
    return not blank and (names.is_valid_job(name) or names.is_valid_workload(name))


def _is_gpu(name: str) -> bool:
    return _GPU.match(name) is not None


def _target(question: Question) -> Gate:
    asked = question.proposal
    if not question.kind:
        raise Unknown(f"kind is {shown(asked.kind)}: no kind of action")
    for what in ("id", "case"):
        if not text(getattr(asked, what), f"the proposal's {what}"):
            raise Unknown(f"the proposal has no {what}")
    _named("the target's node", asked.node, names.is_valid_node_name)
    node, where = question.node, f"{asked.kind} on {asked.node}"
    if question.kind in ON_JOB:
        job = question.job(_named("the target's job", asked.job, _is_job))
        if node.node not in job.nodes:
            raise Unknown(f"job {job.job} does not run on {node.node}")
    if question.kind == "reset_gpu":
        gpu = _named("the target's GPU", asked.gpu, _is_gpu)
        if gpu not in node.gpu_uuids:
            raise Unknown(f"{node.node} has no GPU {gpu}")
    gpu_needless = asked.gpu != "" and question.kind != "reset_gpu"
    needless = gpu_needless or (asked.job != "" and question.kind not in ON_JOB)
    if needless and question.kind not in HARMLESS:
        raise Unknown(f"{where} names a job or GPU that it does not need")
    return _gate("target", True, where)


def _ownership(question: Question) -> Gate:
    node, others = question.node, text(question.state.others, "whether others repair this fleet")
    if others or node.remediator:
        return _gate(
            "ownership", False, f"repaired by {shown(others or node.remediator)}, not split by label"
        )
    if node.hold == "foreign":
        return _gate("ownership", False, f"{node.node} is held by others: {shown(node.held_why)}")
    held = node.hold == "ours" or question.kind not in NEEDS_HOLD
    return _gate("ownership", held, f"hold: {node.hold}")


def _evidence(question: Question) -> Gate:
    """One listed-fatal fact of driver or kernel, or two origins; a job's word is enough for itself."""
    signals = signals_of(question)
    if question.kind in WITHOUT_EVIDENCE:
        return _gate("evidence", True, "needs none")
    fatal = sum(signal.fatal and signal.origin == "driver" for signal in signals)
    origins = origins_of(signals)
    enough = fatal >= 1 or len(origins) >= 2
    if question.kind == "checkpoint":
        enough = bool(signals)
    elif question.kind in ON_JOB:
        enough = enough or origins == ["job"]
    return _gate("evidence", enough, f"fatal {fatal} of 1, origins {len(origins)} of 2: {', '.join(origins)}")


def _budgets(question: Question) -> Gate:
    lines = compare(question)
    approver = text(question.proposal.approved_by, "who approved it")
    says = [line.says if line.passed else f"NOT {line.says}" for line in lines]
    if any(line.asks for line in lines):
        says.append(f"a person approves: {shown(approver)}")
    return _gate("budgets", all(line.passed for line in lines), "; ".join(says))


def _breaker(question: Question) -> Gate:
    """A storm trips it until a person resets it; one domain's fault is one incident and goes to a person."""
    tripped_ns, storm = count(question.state.breaker_ns, "the storm breaker"), storm_of(question)
    detail = f"nodes {storm.nodes} below {storm.bound:g}, domains {storm.domains}; in its domain {storm.here}"
    calm = not tripped_ns and not storm.storming and storm.here < storm.bound_here
    latched = f"; tripped at {tripped_ns}" if tripped_ns else ""
    return _gate("storm breaker", calm, f"{detail} below {storm.bound_here:g}{latched}")


def _blind_spot(question: Question) -> Gate:
    limits, fleet, node = checked_limits(question.state.limits), question.fleet, question.node
    most = max(limits.silent_nodes, part(limits.silent_share, len(fleet)))
    if node.dead and not node.silent:
        raise Unknown(f"{node.node} speaks and is dead")
    seen = node.dead or not node.silent
    says = "" if seen else f"; {node.node} is silent and no second path agrees that it is gone"
    return _gate("blind spot", seen and fleet.silent < most, f"silent {fleet.silent} below {most:g}{says}")


def _workload(question: Question) -> Gate:
    """What runs has its checkpoint, and its owner does not forbid it."""
    against = [f"{n.node} is protected: {shown(n.protected)}" for n in question.touched() if n.protected]
    if not isinstance(question.state.jobs, Mapping):
        raise Unknown("the jobs are not known")
    here, ends = () if question.kind in ON_JOB else question.live_on_node(), question.interrupted()
    if question.kind == "validate":
        against += [f"job {job.job} runs there" for job in here]
    targets = (question.job(question.proposal.job),) if question.kind in INTERRUPTS & ON_JOB else ()
    against += [
        f"job {j.job}: {shown(r)}" for j in {j.job: j for j in (*ends, *targets)}.values() for r in j.refusals
    ]
    against += [
        f"job {j.job}: checkpoint {j.checkpoint}" for j in ends if j.checkpoint in ("none", "pending")
    ]
    return _gate("workload", not against, "; ".join(against[:5]) or f"ends {len(ends)} running jobs")


def _fencing(question: Question) -> Gate:
    """The lease is ours for longer than half its length, and no longer than a lease can be."""
    fence = question.state.fence
    if type(fence) is not Fence or not text(fence.holder, "the fence's holder"):
        raise Unknown("no fence: nobody has the right to act")
    count(fence.generation, "the fence's generation", 1)
    if type(fence.lease_s) not in (int, float) or not 0 < fence.lease_s < float("inf"):
        raise Unknown(f"the lease's length is {shown(fence.lease_s)}")
    left_s = (count(fence.until_ns, "the lease's end") - question.now) / SECOND_NS
    detail = f"lease {fence.generation}: {left_s:.1f} s left of {fence.lease_s:g}, half is needed"
    return _gate("fencing", fence.lease_s / 2 < left_s <= fence.lease_s, detail)


def _trips(question: Question, gates: tuple[Gate, ...]) -> bool:
    """Tell whether the breaker trips now; where its gate passed there is no storm."""
    try:
        calm = question.kind in _NODES and next(g.passed for g in gates if g.name == "storm breaker")
        return not calm and question.state.breaker_ns == 0 and storm_of(question).storming
    except (Unknown, *_MALFORMED):
        return False


_ALL: Final = KINDS - HARMLESS
_NODES: Final = _ALL - {"checkpoint"}
GATES: Final[tuple[tuple[str, frozenset[str], Callable[[Question], Gate]], ...]] = (
    ("mode", _ALL, _mode),
    ("pause", _ALL, _pause),
    ("maintenance", _ALL, _maintenance),
    ("target", KINDS, _target),
    ("ownership", _NODES, _ownership),
    ("evidence", _ALL, _evidence),
    ("budgets", _ALL, _budgets),
    ("storm breaker", _NODES, _breaker),
    ("blind spot", _NODES, _blind_spot),
    ("workload", _ALL, _workload),
    ("fencing", _ALL, _fencing),
)
"""Name, the kinds it is for, and the judge; the order is that of the denials."""


def _judge(name: str, kinds: frozenset[str], judge: Callable[[Question], Gate], question: Question) -> Gate:
    try:
        if question.kind and question.kind not in kinds:
            return _gate(name, True, f"not needed for {question.kind}")
        return judge(question)
    except Unknown as why:
        return _gate(name, False, str(why))
    except _MALFORMED as error:
        return _gate(name, False, f"malformed: {type(error).__name__}")


def _asks(question: Question) -> bool:
    """Tell whether a person must approve, and nobody has."""
    return question.proposal.approved_by == "" and any(line.asks for line in compare(question))


def _effect(question: Question, asks: bool) -> Literal["none", "recommend", "act"]:
    """What the mode makes of an allowed proposal. What changes nothing waits for no one."""
    asked = question.proposal
    try:
        synthetic = asked.synthetic or any(signal.synthetic for signal in signals_of(question))
        mode = _mode_of(question)
    except (Unknown, *_MALFORMED):
        return "none"
    if synthetic or mode == "observe":
        return "none"
    if question.kind in HARMLESS:
        return "act"
    return "recommend" if asks or (mode == "recommend" and not asked.approved_by) else "act"


def _asked(state: FleetState, proposal: Proposal, now_ns: int) -> Question:
    try:
        inventory = inventory_of(state)
    except _MALFORMED:
        inventory = None
    return Question(state=state, proposal=proposal, now_ns=now_ns, inventory=inventory)


def authorise(state: FleetState, proposal: Proposal, now_ns: int) -> Verdict:
    """Return the verdict on one proposal, with every gate's word and numbers. Never raises, changes nothing.

    An approved proposal is asked again with `approved_by` set. Costs O(nodes), or O(what is asked) where the
    state's nodes are an Inventory.
    """
    question = _asked(state, proposal, now_ns)
    gates = tuple(_judge(*row, question) for row in GATES)
    denied = next((gate.name for gate in gates if not gate.passed), "")
    trips = _trips(question, gates)
    if denied:
        return Verdict(allowed=False, gate=denied, gates=gates, effect="none", trips_breaker=trips)
    asks = question.kind not in HARMLESS and _asks(question)
    return Verdict(
        allowed=True,
        gate="",
        gates=gates,
        effect=_effect(question, asks),
        needs_approval=asks,
        trips_breaker=trips,
        interrupts=tuple(job.job for job in question.interrupted()),
    )
