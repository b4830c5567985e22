"""Walking a case: which step is next, what it waits for, what comes after it failed. One tick at a time.

Effects are asked of `Hands` alone, which goes through the safety kernel and the executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from gpuvigil_collector.action import HARMLESS, ON_JOB, Kind
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.policy import ANSWERS, Policy, Step
from gpuvigil_collector.repair.case import Case

ATTEMPTS_MAX: Final = 3
_SECOND_NS: Final = 1_000_000_000

Progress = Literal["waits", "done", "failed", "would", "rejected", "lost"]


@dataclass(frozen=True, slots=True)
class Word:
    """How an effect stands, and why, for people. lost: nobody can tell any more what became of it.

    begun: of a failed one, whether the actuator ever took it.
    """

    progress: Progress
    why: str = ""
    begun: bool = True


class Hands(Protocol):
    """What the walk asks for; each call is made once a tick and answers at once."""

    def effect(self, case: Case, step: Step, job: str) -> Word:
        """Have an effect through kernel and executor, or say how it stands."""
        ...

    def save(self, case: Case, step: Step, job: str) -> Word:
        """Ask one job for a checkpoint, or say how that stands. failed: it can give none."""
        ...

    def awaits(self, case: Case) -> bool:
        """Whether the case waits for a person's approval: that has an end of its own."""
        ...

    def harmless(self, case: Case, kind: Kind) -> None:
        """Tell people, or keep evidence."""
        ...

    def clean_wait_s(self, case: Case) -> float:
        """How long the node must stay clean after a test that passed."""
        ...

    def offender(self, case: Case) -> bool:
        """Whether only a person may return this node."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What holds now.

    jobs: of a node; None: not known. movable: of these, what can be started elsewhere. troubled: what else
    is wrong with a case's node, "" for nothing.
    """

    now_ns: int
    open: Mapping[str, Incident]
    jobs: Callable[[str], tuple[str, ...] | None]
    movable: Callable[[str], bool]
    troubled: Callable[[Case], str]


def last_sign_ns(incident: Incident, now_ns: int) -> int:
    """When an incident's fault last showed; now where its findings do not say.

    It may be open for longer: a report such as Xid 79 stays true for hours, also when the GPU is mended.
    """
    return min(now_ns, max((finding.end_ns for finding in incident.findings), default=now_ns))


class Walk:
    """Takes cases forward. `advance` changes the case that it is given."""

    def __init__(self, policy: Policy, hands: Hands) -> None:
        self._policy, self._hands = policy, hands

    def advance(self, case: Case, scene: Scene) -> None:
        """Do what can be done now: several harmless steps at once, an effect a tick."""
        for _ in range(len(self._policy.playbook[case.playbook].steps) + 1):
            if case.ended or not self._once(case, scene):
                return

    def step_of(self, case: Case) -> Step | None:
        """The step that a case is at; None past its last."""
        steps = self._policy.playbook[case.playbook].steps
        return steps[case.step] if case.step < len(steps) else None

    def _once(self, case: Case, scene: Scene) -> bool:
        """Try the current step; True when the next may follow within this tick."""
        step = self.step_of(case)
        if step is None:
            case.end("returned" if self._returned(case) else "mended", scene.now_ns)
            return False
        if self._untouched(case) and case.incident not in scene.open and step.do not in HARMLESS:
            case.note(scene.now_ns, step.do, "the fault has gone")
            case.end("cleared", scene.now_ns)
            return False
        case.step_began_ns = case.step_began_ns or scene.now_ns
        proven = bool(case.clean_until_ns) and case.incident not in scene.open
        late = scene.now_ns - case.step_began_ns > step.within * _SECOND_NS
        if late and not proven and not self._hands.awaits(case):
            why = case.waits or "no answer"
            return self._failed(case, step, f"not done within {step.within:g} s: {why}", scene.now_ns)
        return self._among_jobs(case, step, scene)

    def _among_jobs(self, case: Case, step: Step, scene: Scene) -> bool:
        """Do a step when the jobs on the node allow it."""
        there = scene.jobs(case.node)
        running = [job for job in there or () if job not in case.moved]
        if obstacle := _obstacle(case, step, running if there is not None else None):
            case.waits = obstacle
            return False
        if step.when == "job" and not running and not case.action:
            case.next_step()
            return True
        return self._do(case, step, running, scene)

    def _do(self, case: Case, step: Step, running: list[str], scene: Scene) -> bool:
        if step.do in HARMLESS:
            return self._harmless(case, step, scene.now_ns)
        if step.do == "checkpoint":
            return self._checkpoint(case, step, running, scene)
        if step.do in {"move_job", "stop_job"}:
            return self._each_job(case, step, [job for job in running if scene.movable(job)], scene)
        if step.do == "release" and self._hands.offender(case):
            return self._hand_over(
                case, "taken out three times in seven days: a person returns it", scene.now_ns
            )
        if step.do == "validate" and case.clean_until_ns:
            return self._clean(case, step, scene)
        return self._take(case, step, self._hands.effect(case, step, ""), scene)

    def _harmless(self, case: Case, step: Step, now_ns: int) -> bool:
        if step.do == "hand_over":
            return self._hand_over(case, "the playbook ends with a person", now_ns)
        self._hands.harmless(case, step.do)
        case.note(now_ns, step.do, "done")
        case.next_step()
        return True

    def _take(self, case: Case, step: Step, word: Word, scene: Scene) -> bool:
        """Go on by what became of an effect."""
        if word.progress == "waits":
            case.waits = word.why
            return False
        if word.progress in {"would", "rejected"}:
            case.note(scene.now_ns, step.do, word.why)
            case.end("observed" if word.progress == "would" else "rejected", scene.now_ns)
            return False
        if word.progress == "lost":
            return self._hand_over(case, word.why, scene.now_ns)
        if word.progress == "failed":
            return self._again(case, step, word, scene.now_ns)
        case.note(scene.now_ns, step.do, "done")
        if step.do == "hold":
            case.held, case.hold, case.held_ns, case.held_seen = True, case.action, scene.now_ns, False
        if step.do == "release":
            case.held = False
        if step.do == "validate":
            wait_s = self._hands.clean_wait_s(case)
            case.clean_until_ns = scene.now_ns + int(wait_s * _SECOND_NS)
            case.proven_ns = case.asked_ns
            case.action, case.waits = "", f"clean for {wait_s:g} s"
            return False
        case.next_step()
        return True

    def _clean(self, case: Case, step: Step, scene: Scene) -> bool:
        """The test has passed: the node must stay clean for a while, from when its own fault has gone."""
        trouble = scene.troubled(case)
        if trouble:
            return self._failed(case, step, f"not clean: {trouble}", scene.now_ns)
        if case.incident in scene.open:
            wait_s = self._hands.clean_wait_s(case)
            case.clean_until_ns = scene.now_ns + int(wait_s * _SECOND_NS)
            case.waits = f"incident {case.incident} to resolve, then {wait_s:g} s clean"
            return False
        case.waits = f"{max(0, case.clean_until_ns - scene.now_ns) / _SECOND_NS:.0f} s more of a clean node"
        if scene.now_ns < case.clean_until_ns:
            return False
        case.note(scene.now_ns, step.do, "clean")
        case.next_step()
        return True

    def _checkpoint(self, case: Case, step: Step, running: list[str], scene: Scene) -> bool:
        """Ask each job; one that cannot save is noted as such, and the kernel decides what that allows."""
        for job in running:
            if case.jobs.get(job) in {"saved", "impossible"}:
                continue
            case.jobs[job] = "pending"
            word = self._hands.save(case, step, job)
            if word.progress == "would":
                case.note(scene.now_ns, step.do, word.why)
                case.jobs[job] = "impossible"
            elif word.progress in {"waits", "rejected"}:
                return self._take(case, step, word, scene)
            else:
                case.jobs[job] = "saved" if word.progress == "done" else "impossible"
                case.note(scene.now_ns, step.do, f"{job}: {'saved' if word.progress == 'done' else word.why}")
                case.action = ""
        case.next_step()
        return True

    def _each_job(self, case: Case, step: Step, running: list[str], scene: Scene) -> bool:
        """One job after the other, each an action of its own."""
        job = next((name for name in running), "")
        if case.action:
            job = case.moving
        if not job:
            case.next_step()
            return True
        case.moving = job
        word = self._hands.effect(case, step, job)
        if word.progress == "done":
            case.note(scene.now_ns, step.do, f"{job}: {word.why}")
            case.moved.append(job)
            case.action, case.moving, case.attempt = "", "", 0
            return True
        return self._take(case, step, word, scene)

    def _again(self, case: Case, step: Step, word: Word, now_ns: int) -> bool:
        """A failed attempt did not happen, for certain: it may be made anew, a few times.

        A test that a node did not pass is not asked for again; one that was never begun is.
        """
        case.attempt += 1
        case.action = ""
        if case.attempt < ATTEMPTS_MAX and (step.do != "validate" or not word.begun):
            case.note(now_ns, step.do, f"attempt {case.attempt} failed: {word.why}")
            case.waits = word.why
            return False
        return self._failed(case, step, word.why, now_ns)

    def _failed(self, case: Case, step: Step, why: str, now_ns: int) -> bool:
        case.note(now_ns, step.do, f"failed: {why}")
        if step.do == "checkpoint":
            case.jobs = {
                job: "saved" if state == "saved" else "impossible" for job, state in case.jobs.items()
            }
        if step.failed == "continue":
            case.next_step()
            return True
        if step.failed not in ANSWERS:
            case.playbook, case.step = step.failed, -1
            case.next_step()
            return True
        return self._hand_over(case, f"{step.do}: {why}", now_ns)

    def _hand_over(self, case: Case, why: str, now_ns: int) -> bool:
        """Leave it to a person; a hold of ours stays. False: nothing follows."""
        case.note(now_ns, "hand_over", why)
        self._hands.harmless(case, "hand_over")
        case.end("handed_over", now_ns)
        return False

    def _untouched(self, case: Case) -> bool:
        """Whether nothing has been done, or is under way, that must be seen to its end."""
        return not (case.held or case.moved or case.action)

    def _returned(self, case: Case) -> bool:
        steps = self._policy.playbook[case.playbook].steps
        return any(step.do == "release" for step in steps) and not case.held


def _obstacle(case: Case, step: Step, running: list[str] | None) -> str:
    """Say what a step must wait for before it begins, "" for nothing. running: None, not known."""
    if case.action:
        return ""
    if running is None:
        needs = step.when != "always" or step.do in ON_JOB
        return f"what runs on {case.node} is not known" if needs else ""
    if step.when != "idle" or not running:
        return ""
    return f"{len(running)} job{'s' * (len(running) > 1)} on {case.node}: {', '.join(running[:3])}"
