"""The lease in Kubernetes: of the collectors of one cluster, one may act.

A Lease of coordination.k8s.io/v1, changed only with the resourceVersion that was read, so of two that try one
wins. No clock is compared with another's: the holder counts from before it sent its renewal, whoever waits
counts from when it first saw that renewal, and takes over when the record has stood still for its whole time.
leaseTransitions is the generation; a Lease that is new begins with a number that no older one can have had.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import msgspec

from gpuvigil_collector.action import Fence
from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError
from gpuvigil_collector.kube.objects import Meta, path_word
from gpuvigil_protos import log

NAME: Final = "gpuvigil-collector"
_RENEWALS: Final = 3  # in the time of one lease: one may be missed
_USABLE: Final = 0.5  # with less of the lease left than this share, nothing is begun
_LEASE_S_MAX: Final = 3600
_GENERATION_MAX: Final = (1 << 31) - 1  # leaseTransitions is an int32


def lease_path(namespace: str) -> str:
    """Return where the Lease is. Raises KubeError for what is no namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{path_word(namespace)}/leases/{NAME}"


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    """spec of a Lease. lease_transitions: the generation."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None
    renew_time: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A Lease as the server has it."""

    metadata: Meta
    spec: Spec = msgspec.field(default_factory=Spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    generation: int
    until_steady_ns: int
    until_wall_ns: int


class KubernetesLease:
    """The right to act on one cluster. Any thread may ask; `api` is this lease's own."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        *,
        lease_s: float = 30.0,
        holder: str = "",
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        """lease_s: whole seconds, how long a collector that has gone holds the others up."""
        self.holder = f"{holder or socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.fault = ""
        self._api, self._lease_ns, self._wall, self._steady = api, int(lease_s) * 10**9, wall, steady
        self._path = lease_path(namespace)
        self._held: _Held | None = None
        self._other = ""
        self._seen: tuple[tuple[str, str], int] | None = None  # another's record and when we first saw it so
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="lease", daemon=True)
        self._log = log.get("lease")

    def start(self) -> None:
        """Take it where it is free, and renew it, in a thread of its own."""
        self.renew()
        self._thread.start()

    def stop(self) -> None:
        """End renewing and give it back: the next holder need not wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self._lease_ns / 1e9)
        with self._lock, suppress(KubeError):
            held, self._held = self._held, None
            if held is not None:
                self._give_back(held)

    def fence(self) -> Fence | None:
        """Return the right to act now, by both clocks; None with less than half of the lease left."""
        held, steady, wall = self._held, self._steady(), self._wall()
        if held is None or wall >= held.until_wall_ns:
            return None
        left = min(held.until_steady_ns - steady, self._lease_ns)
        if left <= self._lease_ns * _USABLE:
            return None
        return Fence(
            holder=self.holder,
            generation=held.generation,
            until_ns=wall + left,
            lease_s=self._lease_ns / 1e9,
        )

    def state(self) -> str:
        """Say who holds it, for people."""
        held = self._held
        if held is not None and self.fence() is not None:
            return f"ours, generation {held.generation}"
        return self.fault or (
            f"held by {self._other}" if self._other else "not ours yet: this collector waits"
        )

    def renew(self) -> None:
        """Take or renew the lease once. What fails is told in `fault`; what is held runs out by itself."""
        with self._lock:
            try:
                self._try()
            except KubeError as error:
                if not self.fault:
                    self._log.error("lease_failed", error=str(error))
                self.fault = f"lease {NAME} cannot be used ({error}): this collector only observes"
            else:
                self.fault = ""

    def _try(self) -> None:
        deadline = Deadline(self._lease_ns / 1e9 / _RENEWALS)
        record = self._api.get(self._path, Record, deadline)
        steady, wall = self._steady(), self._wall()
        generation = self._may(record, steady, wall)
        if not generation:
            self._held, self._other = None, clean_text((record.spec.holder_identity or "")[:200])
            return
        try:
            self._write(record, self._claim(generation, wall), deadline)
        except StatusError as error:
            if error.code != 409:
                raise
            # somebody wrote between our look and our claim: the next look says who
            self._held = None
            return
        if self._held is None or self._held.generation != generation:
            before = record.spec.holder_identity or "nobody"
            self._log.warning("lease_taken", generation=generation, before=before)
        self._held = _Held(
            generation=generation,
            until_steady_ns=steady + self._lease_ns,
            until_wall_ns=wall + self._lease_ns,
        )
        self._other = ""

    def _may(self, record: Record, steady: int, wall: int) -> int:
        """Return the generation under which we hold it from now on, 0 when it is another's."""
        spec, held = record.spec, self._held
        now = spec.lease_transitions or 0
        if not 0 <= now < _GENERATION_MAX:
            raise KubeError(f"leaseTransitions: expected up to {_GENERATION_MAX}, got {now}")
        if held is not None and (spec.holder_identity, now) == (self.holder, held.generation):
            return now if steady < held.until_steady_ns else now + 1
        if not self._free(record, steady):
            return 0
        return now + 1 if now else max(1, wall // 1_000_000_000 % _GENERATION_MAX)

    def _free(self, record: Record, steady: int) -> bool:
        """Tell whether nobody holds it: given back, ours by a lost answer, or still for its whole time."""
        holder, seconds = record.spec.holder_identity, record.spec.lease_duration_seconds
        if not holder or holder == self.holder:
            return True
        if seconds is None or not 0 < seconds <= _LEASE_S_MAX:
            raise KubeError(f"leaseDurationSeconds: expected 1 to {_LEASE_S_MAX}, got {seconds}")
        version = (record.metadata.uid, record.metadata.resource_version)
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, steady)
        return steady - self._seen[1] >= max(seconds * 10**9, self._lease_ns)

    def _claim(self, generation: int, wall: int) -> dict[str, Any]:
        now = datetime.fromtimestamp(wall / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        claim: dict[str, Any] = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": self._lease_ns // 10**9,
            "leaseTransitions": generation,
            "renewTime": now,
        }
        new = self._held is None or self._held.generation != generation
        return claim | ({"acquireTime": now} if new else {})

    def _write(self, record: Record, spec: dict[str, Any], deadline: Deadline) -> None:
        if not record.metadata.resource_version:
            raise KubeError("lease: expected a resourceVersion, got none")
        meta = {"resourceVersion": record.metadata.resource_version}
        self._api.patch(self._path, {"metadata": meta, "spec": spec}, Record, deadline)

    def _give_back(self, held: _Held) -> None:
        deadline = Deadline(self._lease_ns / 1e9 / _RENEWALS)
        record = self._api.get(self._path, Record, deadline)
        if (record.spec.holder_identity, record.spec.lease_transitions) == (self.holder, held.generation):
            self._write(record, {"holderIdentity": None}, deadline)

    def _main(self) -> None:
        while not self._stopping.wait(self._lease_ns / 1e9 / _RENEWALS):
            self.renew()
