"""Move a Slurm job (requeue it) or stop it.

The job's count of restarts tells before from after. What excludes the bad node is its drain, ExcNodeList
on top where the site asks for it. A requeued job waits for its credential to run out, 121 s by default:
StartTime=now ends that, once the job is pending; while it is completing Slurm says yes and forgets it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Look, RefusedError
from gpuvigil_collector.actuators.slurm_send import Turn, send
from gpuvigil_collector.slurm import jobs as slurm_jobs
from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.jobs import SlurmJob
from gpuvigil_collector.slurm.records import NonsenseError
from gpuvigil_collector.slurm.settings import SlurmSettings

_RESTARTS: Final = re.compile(r"restarts=(\d{1,9})")
_POLL_S: Final = 1.0  # each poll has slurmctld list all jobs
_HELD: Final = ("JobHeldUser", "JobHeldAdmin")
_REQUEUE_S: Final = 5.0
"""What must be left of the turn after the wait for a checkpoint."""


@dataclass(slots=True)
class JobHands:
    """Looks at jobs, requeues and cancels them."""

    client: SlurmClient
    settings: SlurmSettings
    _signalled: dict[tuple[str, str], float] = field(default_factory=dict)

    def look(self, action: Action, deadline_s: float) -> Look:
        """Say whether the job was moved, or stopped. Raises UnknownError."""
        job = self._job(action.proposal.job, deadline_s)
        return _judged(job, action)

    def apply(self, action: Action, fence: Fence, turn: Turn) -> str:
        """Move or stop the job. Raises RefusedError, AmbiguousError; UnknownError: nothing was sent."""
        job = self._job(action.proposal.job, turn.left_s())
        look = _judged(job, action)
        if look.state == "done":
            return look.detail
        if job is None or look.state != "absent":
            raise RefusedError(look.detail)
        _check(job, action)
        if action.proposal.kind == "stop_job":
            send(self.client, turn, "scancel", job.job)
            return f"job {job.job} of {job.user} was cancelled"
        self._checkpoint(job, turn)
        send(self.client, turn, "scontrol", "requeue", job.job)
        return f"job {job.job} of {job.user} was requeued; {self._let_go(action, job, turn)}"

    def _checkpoint(self, job: SlurmJob, turn: Turn) -> None:
        """Send the job's own checkpoint signal to its batch script, once a run, and wait as long as it asked.

        A job that ends or starts again by itself meanwhile is not requeued. Raises RefusedError.
        """
        if job.signal is None:
            return
        run = (job.job, job.token)
        if run not in self._signalled:
            send(self.client, turn, "scancel", "--batch", f"--signal={job.signal.name}", job.job)
            self._signalled[run] = time.monotonic()
            for old in list(self._signalled)[:-1000]:
                del self._signalled[old]
        wait_s = self._signalled[run] + job.signal.wait_s - time.monotonic()
        if wait_s > turn.left_s() - _REQUEUE_S:
            raise RefusedError(
                f"job {job.job} saves upon {job.signal.name} and has {max(0.0, wait_s):.0f} s of its"
                f" {job.signal.wait_s} s left: not requeued in this turn of {turn.left_s():.0f} s"
            )
        time.sleep(max(0.0, wait_s))
        try:
            now = self._job(job.job, turn.left_s())
        except UnknownError as error:
            raise RefusedError(f"signalled, not requeued: {error}") from error
        if now is None or now.restarts != job.restarts or not now.on_nodes or "COMPLETING" in now.state:
            raise RefusedError(f"job {job.job} ended or started again by itself after {job.signal.name}")

    def _let_go(self, action: Action, job: SlurmJob, turn: Turn) -> str:
        """End the begin-time hold of the requeued job; say what came of it. The move is done by now."""
        told = self._exclude(action, job, turn) if self.settings.exclude_node else ""
        try:
            while (now := self._job(job.job, turn.left_s())) is not None and "COMPLETING" in now.state:
                time.sleep(min(_POLL_S, turn.left_s()))
            if now is None or "PENDING" not in now.state:
                return f"{told}it is {_state(now) if now else 'gone'}"
            if now.reason in _HELD:
                return f"{told}it is held: {now.reason}"
            send(self.client, turn, "scontrol", "update", f"jobid={job.job}", "StartTime=now")
        except (UnknownError, RefusedError, AmbiguousError) as error:
            return f"{told}Slurm starts it when its credential runs out ({error})"
        return f"{told}it may start at once"

    def _exclude(self, action: Action, job: SlurmJob, turn: Turn) -> str:
        node = action.proposal.node
        nodes = ",".join(dict.fromkeys((*job.excluded_nodes, node)))
        try:
            send(self.client, turn, "scontrol", "update", f"jobid={job.job}", f"ExcNodeList={nodes}")
        except (RefusedError, AmbiguousError) as error:
            return f"{node} could not be excluded ({error}); "
        return f"never on {node} again; "

    def _job(self, name: str, deadline_s: float) -> SlurmJob | None:
        records = self.client.jobs(deadline_s)
        try:
            found = slurm_jobs.read_all(records, self.settings.opt_in == "all")
        except NonsenseError as error:
            raise UnknownError(f"slurm answered nonsense: {error}") from error
        return next((job for job in found if job.job == name), None)


def _check(job: SlurmJob, action: Action) -> None:
    """Raise RefusedError for a job that must not be stopped."""
    node = action.proposal.node
    if not job.on_nodes or "COMPLETING" in job.state:
        raise RefusedError(f"job {job.job} runs on no node: {_state(job)}")
    if job.refusals:
        raise RefusedError(f"job {job.job} of {job.user} must not be stopped: {', '.join(job.refusals)}")
    if action.proposal.kind == "move_job" and node in job.required_nodes:
        raise RefusedError(f"job {job.job} asks for {node} itself (--nodelist): it would wait for ever")


def _judged(job: SlurmJob | None, action: Action) -> Look:
    """Say what a job's state means for an action; `action.before` has its restarts before the effect."""
    name, before = action.proposal.job, _RESTARTS.search(action.before)
    if job is None:
        gone = action.proposal.kind == "stop_job" and before is not None
        return Look(state="done" if gone else "absent", detail=f"Slurm does not know the job {name}")
    again = before is not None and job.restarts > int(before[1])
    if action.proposal.kind == "stop_job":
        return _look_stop(job, again)
    detail = f"job {name}: {_state(job)}, restarted {job.restarts} times"
    return Look(state="done" if again else "absent", detail=detail, token=job.token)


def _look_stop(job: SlurmJob, again: bool) -> Look:
    detail = f"job {job.job}: {_state(job)}"
    if again and not job.ended:
        return Look(state="foreign", detail=f"{detail}: started again by somebody else", token=job.token)
    stopped = job.ended or "COMPLETING" in job.state
    return Look(state="done" if stopped else "absent", detail=detail, token=job.token)


def _state(job: SlurmJob) -> str:
    return "+".join(sorted(job.state)).lower()
