"""One node with a job, a desk of repair over it, effects that the test decides, a clock that it moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpuvigil_collector import policy
from gpuvigil_collector.action import (
    Action,
    ActionState,
    FleetState,
    Gate,
    JobState,
    Kind,
    NodeState,
    Past,
    Proposal,
    Verdict,
)
from gpuvigil_collector.action_store import Told
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.desk import RepairDesk
from gpuvigil_collector.repair.hands import SafeHands
from gpuvigil_collector.repair.needs import Scenery
from gpuvigil_collector.repair.store import Kept
from gpuvigil_collector.repair.walk import Word

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
CLEAN_S = 900.0
ALL: frozenset[Kind] = frozenset(
    {"hold", "release", "move_job", "stop_job", "reset_gpu", "reboot", "validate"}
)


class Memory:
    """Records in memory: what the action store promises, without a disk."""

    def __init__(self) -> None:
        self.fault = ""
        self.rows: dict[str, str] = {}
        self.kept: dict[str, Action] = {}
        self.let_go: list[str] = []

    def put_case(self, case_id: str, body: str) -> bool:
        self.rows[case_id] = body
        return True

    def forget_case(self, case_id: str) -> bool:
        return self.rows.pop(case_id, None) is not None

    def cases(self) -> dict[str, str] | None:
        return dict(self.rows)

    def no_longer_held(self, action_id: str) -> bool:
        self.let_go.append(action_id)
        return True

    def write(self, action: Action) -> bool:
        self.kept[action.proposal.id] = action
        return True

    def get(self, action_id: str) -> Action | None:
        return self.kept.get(action_id)

    def past(self, now_ns: int) -> tuple[Past, ...] | None:
        return ()


class Effects:
    """An executor whose effects the test decides; `asked` is what an outsider would have seen."""

    def __init__(self, kinds: frozenset[Kind] = ALL) -> None:
        self.kinds = kinds
        self.asked: list[tuple[Kind, str]] = []
        self.fails: dict[Kind, str] = {}
        self.lost: dict[Kind, str] = {}  # once each: nobody ever took it
        self.silent: set[Kind] = set()
        self._ended: list[Told] = []
        self.sequence = 0
        self.records: Memory | None = None

    def submit(self, action: Action) -> Action:
        proposal = action.proposal
        if self.records is not None:
            self.records.write(action)
        self.asked.append((proposal.kind, proposal.job or proposal.gpu or proposal.node))
        if proposal.kind in self.silent:
            return action
        why, lost = self.fails.get(proposal.kind), self.lost.pop(proposal.kind, "")
        state: ActionState = "failed" if why or lost else "done"
        self.ends(replace(action, state=state, outcome=why or lost or "seen", answered=not lost))
        return action

    def ends(self, action: Action) -> None:
        self.sequence += 1
        self._ended.append(Told(sequence=self.sequence, action=action))

    def settle(self, action_id: str, state: Any, outcome: str) -> Action:
        found = self.records.get(action_id) if self.records is not None else None
        if found is None or found.state != "ambiguous":
            raise KeyError(action_id)
        settled = replace(found, state=state, outcome=outcome)
        self.ends(settled)
        return settled

    def results(self) -> list[Told]:
        return list(self._ended)

    def told(self, sequence: int) -> None:
        self._ended = [one for one in self._ended if one.sequence > sequence]


class Saves:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.word = Word("done", "step 40")

    def begin(self, job: str, by: str) -> None:
        self.asked.append(job)

    def stands(self, job: str, by: str) -> Word:
        return self.word


class World:
    """One node with a job, a desk over it, and a clock that the test moves."""

    def __init__(self, records: Memory | None = None, kinds: frozenset[Kind] = ALL) -> None:
        self.records = records or Memory()
        self.effects, self.saves = Effects(kinds), Saves()
        self.effects.records = self.records
        self.told: list[tuple[str, str]] = []
        self.now_ns = START
        self.mode: Any = "act"
        self.denies = ""
        self.blind = False
        self.open: dict[str, Incident] = {}
        self.scheduler = False
        self.undrained: set[str] = set()
        self.jobs: dict[str, JobState] = {"j1": JobState(job="j1", nodes=("n1", "n2"), gpus=16)}
        kept = Kept(self.records)
        kept.load()
        self.desk = RepairDesk(
            policy.load(),
            SafeHands(
                kept=kept, executor=self.effects, saves=self.saves, judge=self._judge,
                note=lambda notes: self.told.extend((one.what, one.detail) for one in notes),
                keep_evidence=lambda _case, _incident: None, clean_wait_base_s=CLEAN_S, approval_s=3600.0,
            ),
        )  # fmt: skip
        self.desk.hands.load()

    def _judge(self, state: FleetState, proposal: Proposal, now_ns: int) -> Verdict:
        effect: Any = {"observe": "none", "recommend": "recommend", "act": "act"}[state.mode or "observe"]
        gate = Gate(name=self.denies or "mode", passed=not self.denies, detail="as the test says")
        return Verdict(allowed=not self.denies, gate=self.denies, gates=(gate,), effect=effect)

    def fault(self, fault_class: str, node: str = "n1", identity: str = "i1") -> None:
        self.open[identity] = Incident(
            id=identity, fingerprint=f"f-{identity}", fault_class=fault_class, scope="gpu",
            severity="critical",
            state="open", node=node, target=f"{node}/gpu:GPU-1", cause="it broke",
            lead_start_ns=self.now_ns, opened_ns=self.now_ns, seen_ns=self.now_ns,
        )  # fmt: skip

    def tick(self, times: int = 1, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.now_ns += int(seconds * SECOND)
            running = {job for job, state in self.jobs.items() if state.nodes}
            held = {case.node for case in self.desk.kept.cases.values() if case.held} - self.undrained
            nodes = {
                name: NodeState(
                    node=name, gpus=8, jobs=tuple(sorted(running)), hold="ours" if name in held else "none"
                )
                for name in ("n1", "n2")
            }
            state = FleetState(mode=self.mode, nodes=nodes, jobs=self.jobs)
            if self.blind:
                state = FleetState(mode=self.mode)
            self.desk.tick(
                Scenery(
                    now_ns=self.now_ns, open=self.open, state=state,
                    scheduler_ns=self.now_ns if self.scheduler else 0,
                )
            )  # fmt: skip

    @property
    def case(self) -> Case:
        return next(reversed(self.desk.kept.cases.values()))

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind, _ in self.effects.asked]

    def end_job(self) -> None:
        self.jobs = {"j1": replace(self.jobs["j1"], nodes=())}
