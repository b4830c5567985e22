"""Evidence of a hang: a job that makes no step is asked for stacks and for its own records of collectives.

A suspicion alone acts on nothing: it only has the agents look, once a job and interval. What comes back are
events like all others, and the judges of the loop read them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gpuvigil_collector.config import SaveSettings
from gpuvigil_collector.ingest import frames
from gpuvigil_detectors.training.jobs import SECOND_NS, Job
from gpuvigil_protos import log

_DEADLINE_S: Final = 30
_SENT_MAX: Final = 10_000
_log = log.get("evidence")


class EvidenceDesk:
    """One thread calls `tick`."""

    def __init__(self, settings: SaveSettings, send: Callable[[frames.Command], None]) -> None:
        self._settings, self._send = settings, send
        self._asked_ns: dict[str, int] = {}
        self._sent: dict[str, str] = {}  # command -> job, to say what was refused
        self._number = 0

    def tick(
        self,
        now_ns: int,
        jobs: Mapping[str, Job],
        suspected: Iterable[str],
        results: Iterable[frames.Result],
    ) -> None:
        """Ask the nodes of each job that is suspected anew, and note what agents say to it."""
        for result in results:
            job = self._sent.get(result.id)
            if job is not None and not result.accepted:
                _log.warning("evidence_refused", job=job, node=result.node, reason=result.outcome[:200])
        self._asked_ns = {name: asked for name, asked in self._asked_ns.items() if name in jobs}
        if not self._settings.evidence:
            return
        for name in suspected:
            asked_ns = self._asked_ns.get(name)
            due = asked_ns is None or now_ns - asked_ns >= self._settings.evidence_interval * SECOND_NS
            if due and name in jobs and jobs[name].living:
                self._ask(jobs[name], now_ns)

    def _ask(self, job: Job, now_ns: int) -> None:
        self._asked_ns[job.name] = now_ns
        # grows over restarts of the collector too: a hook heeds only a number above the last
        self._number = max(self._number + 1, now_ns // 1_000_000)
        identity = secrets.token_hex(8)
        arguments = {"job": job.name, "number": str(self._number)}
        nodes = sorted({rank.node for rank in job.living})
        for node in nodes:
            self._send(
                frames.Command(node, identity, "evidence", arguments, now_ns + _DEADLINE_S * SECOND_NS)
            )
        self._sent[identity] = job.name
        while len(self._sent) > _SENT_MAX:
            del self._sent[next(iter(self._sent))]
        _log.info("evidence_asked", job=job.name, nodes=len(nodes), request=identity)
