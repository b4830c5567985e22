"""Where checkpoints are asked for: refuses what would do harm, follows what was asked, says how it ended.

A request goes to every node of a job, whose agents write it into the pages that the ranks read; the ranks
agree on a step, save, and tell. It is asked for only while all ranks progress, once an interval at most, and
only of jobs whose owner has opted in. What a job says of its checkpoints is the job's word alone.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from gpuvigil_collector.config import SaveSettings
from gpuvigil_collector.ingest import frames
from gpuvigil_collector.saves.request import Kind, Saved, SaveRequest, State
from gpuvigil_detectors.base import FactEvent, Snapshot
from gpuvigil_detectors.training.jobs import SECOND_NS, Job
from gpuvigil_protos import log
from gpuvigil_protos.entity import job_and_rank_of

KEPT_MAX: Final = 1000
_RESTART_S: Final = 30.0
_STATES: Final[dict[str, State]] = {
    "saved": "saved", "failed": "failed", "partial": "partial", "fenced": "fenced",
    "no_space": "no_space", "unusable": "unusable",
}  # fmt: skip
_log = log.get("saves")


class RefusedError(Exception):
    """A checkpoint that is not asked for; the text says why."""


class StrangerError(RefusedError):
    """No rank of the job has registered, as far as this run of the collector knows."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What somebody wants; answered at the next tick."""

    job: str
    by: str
    kind: Kind
    force: bool
    future: Future[SaveRequest]


class SaveDesk:
    """One thread calls `tick`; `ask` may be called by any and is answered at the next tick."""

    def __init__(self, settings: SaveSettings, send: Callable[[frames.Command], None]) -> None:
        self._settings, self._send = settings, send
        self.requests: dict[str, SaveRequest] = {}
        self.newest: dict[str, Saved] = {}
        self._newest_of: dict[tuple[str, Kind], SaveRequest] = {}
        self._asked: deque[_Asked] = deque(maxlen=KEPT_MAX)
        self._lock = threading.Lock()
        self._number = 0

    def ask(self, job: str, by: str, kind: Kind = "save", *, force: bool = False) -> Future[SaveRequest]:
        """Ask for a checkpoint, or a restart; the future holds the request, or RefusedError.

        force: restart a job that makes steps.
        """
        future: Future[SaveRequest] = Future()
        with self._lock:
            self._asked.append(_Asked(job, by, kind, force, future))
        return future

    def tick(
        self,
        snapshot: Snapshot,
        jobs: dict[str, Job],
        results: Iterable[frames.Result],
        hung: Callable[[str], bool],
    ) -> None:
        """Take answers in, follow deadlines, and ask for what was asked for."""
        for result in results:
            self._answered(result, snapshot.now_ns)
        for event in snapshot.events:
            if event.kind == "checkpoint" and not event.judged:
                self._told(event)
        for request in self.requests.values():
            if not request.ended and snapshot.now_ns > request.deadline_ns:
                self._late(request, jobs.get(request.job), snapshot.now_ns)
        with self._lock:
            asked, self._asked = list(self._asked), deque(maxlen=KEPT_MAX)
        for one in asked:
            try:
                one.future.set_result(self._begin(one, jobs.get(one.job), snapshot.now_ns, hung))
            except RefusedError as error:
                _log.info("not_asked", kind=one.kind, job=one.job, by=one.by, reason=str(error)[:200])
                one.future.set_exception(error)
        while len(self.requests) > KEPT_MAX:
            self._drop(next(iter(self.requests)))
        self.newest = {job: saved for job, saved in self.newest.items() if job in jobs}

    def of_job(self, job: str, kind: Kind = "save") -> SaveRequest | None:
        """The newest request of a kind to a job."""
        return self._newest_of.get((job, kind))

    def _drop(self, identity: str) -> None:
        """Forget the oldest request; it may be the newest of its job."""
        gone = self.requests.pop(identity)
        if self._newest_of.get((gone.job, gone.kind)) is gone:
            del self._newest_of[gone.job, gone.kind]

    def _begin(self, one: _Asked, job: Job | None, now_ns: int, hung: Callable[[str], bool]) -> SaveRequest:
        """Send a new request to the job's nodes. Raises RefusedError."""
        if job is None:
            raise StrangerError(f"job {one.job}: nothing is known of it")
        if self._settings.requests == "off":
            raise RefusedError("requests to jobs are off (saves.requests)")
        if one.kind == "save":
            _check_save(job, hung(job.name))
        elif not (one.force or hung(job.name) or len(job.living) < job.world_size):
            raise RefusedError(f"job {job.name}: it makes steps; --force restarts it all the same")
        self._check_pace(one, now_ns)
        self._number = max(self._number + 1, now_ns // 1_000_000)
        seconds = self._settings.deadline if one.kind == "save" else _RESTART_S
        request = SaveRequest(
            id=secrets.token_hex(8), number=self._number, kind=one.kind, job=job.name, by=one.by,
            asked_ns=now_ns, deadline_ns=now_ns + int(seconds * SECOND_NS),
            nodes=dict.fromkeys(sorted({rank.node for rank in job.ranks.values()}), ""),
        )  # fmt: skip
        self.requests[request.id] = self._newest_of[job.name, one.kind] = request
        if one.kind == "restart":
            job.restart_asked_ns = now_ns
        arguments = {"job": job.name, "number": str(request.number)}
        for node in request.nodes:
            self._send(frames.Command(node, request.id, one.kind, arguments, request.deadline_ns))
        _log.info("asked", kind=one.kind, job=job.name, by=one.by, request=request.id)
        return request

    def _check_pace(self, one: _Asked, now_ns: int) -> None:
        """One request of a kind at a time, and one an interval. Raises RefusedError."""
        before = self.of_job(one.job, one.kind)
        if before is None:
            return
        if not before.ended:
            raise RefusedError(f"job {one.job}: request {before.id} is under way")
        left = self._settings.interval - (now_ns - before.asked_ns) / SECOND_NS
        if left > 0:
            raise RefusedError(
                f"job {one.job}: one request an interval, next in {left:.0f} s (saves.interval)"
            )

    def _answered(self, result: frames.Result, now_ns: int) -> None:
        request = self.requests.get(result.id)
        if request is None or request.ended or result.node not in request.nodes:
            return
        request.nodes[result.node] = result.outcome or "armed"
        if not result.accepted:
            self._finish(request, "refused", now_ns, f"{result.node}: {result.outcome}")
        elif all(request.nodes.values()):
            if request.kind == "restart":
                self._finish(request, "restarting", now_ns, "every launcher was asked")
            else:
                request.state = "armed"

    def _told(self, event: FactEvent) -> None:
        """Take one rank's word on a save: rank 0 publishes, so its word is the outcome."""
        where, fields = job_and_rank_of(event.entity), event.fields
        state = _STATES.get(fields.get("outcome", ""))
        if where is None or state is None:
            return
        job, rank = where
        step, size, seconds = (
            _count(fields.get("step")),
            _count(fields.get("bytes")),
            _float(fields.get("seconds")),
        )
        path = fields.get("path", "")
        if state == "saved" and rank == 0:
            self.newest[job] = Saved(
                step=step, path=path, size=size, seconds=seconds, at_ns=event.time_ns,
                request=fields.get("request", ""),
            )  # fmt: skip
        request = self.requests.get(fields.get("request", ""))
        if request is None or request.job != job or request.ended:
            return
        request.told[rank] = state
        if rank == 0:
            request.step, request.path, request.size, request.seconds = step, path, size, seconds
            self._finish(request, state, event.time_ns, fields.get("detail", ""))

    def _late(self, request: SaveRequest, job: Job | None, now_ns: int) -> None:
        """The deadline passed: say who has not answered, as far as anyone knows."""
        silent = sorted(node for node, answer in request.nodes.items() if not answer)
        dead = [rank.number for rank in job.ranks.values() if rank.ended] if job is not None else []
        words = {rank: state for rank, state in request.told.items() if state != "saved"}
        if silent:
            detail = f"no answer from {', '.join(silent[:5])}"
        elif words:
            detail = "; ".join(f"rank {rank}: {state}" for rank, state in sorted(words.items())[:5])
        elif dead:
            detail = f"rank {', '.join(map(str, sorted(dead)[:5]))} has ended"
        else:
            detail = "all ranks were asked and none has told an end: the save hangs, or no step was reached"
        self._finish(request, "deadline", now_ns, detail)

    def _finish(self, request: SaveRequest, state: State, now_ns: int, detail: str) -> None:
        request.end(state, now_ns, detail)
        _log.info("checkpoint_ended", job=request.job, request=request.id, outcome=state, detail=detail[:200])


def _check_save(job: Job, hung: bool) -> None:
    """Only ranks that all live and progress can save, and only where their owner lets them."""
    if len(job.living) < job.world_size:
        raise RefusedError(f"job {job.name}: {len(job.living)} of {job.world_size} ranks live: all must")
    if not all(rank.on_request == "save" for rank in job.living):
        raise RefusedError(f"job {job.name}: its owner has not opted in (gpuvigil.saver.Saver in its loop)")
    if hung:
        raise RefusedError(f"job {job.name}: it makes no step; only ranks that progress can save")


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 19 else -1


def _float(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return 0.0
    return value if 0 <= value < 1e9 else 0.0
