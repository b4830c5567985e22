"""The lease in Kubernetes: of the collectors of one cluster, one may act.

A Lease of coordination.k8s.io/v1, changed only with the resourceVersion that was read, so of two that try one
wins. No clock is compared with another's: the holder counts from before it sent its renewal, whoever waits
counts from when it first saw that renewal, and takes over when the record has stood still for its whole time.
leaseTransitions is the generation; a Lease that is new begins with a number that no older one can have had.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gpuvigil_collector.ingest.validate import clean_text
from gpuvigil_collector.kube.api import Deadline, KubeApi, KubeError, StatusError
from gpuvigil_collector.kube.objects import Meta, path_word
from gpuvigil_collector.lease import RENEWALS, Clock, Held, RenewedLease

NAME: Final = "gpuvigil-collector"
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


class KubernetesLease(RenewedLease):
    """The right to act on one cluster. Any thread may ask; `api` is this lease's own."""

    errors = (KubeError,)

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        *,
        lease_s: float = 30.0,
        holder: str = "",
        clock: Clock | None = None,
    ) -> None:
        """lease_s: whole seconds, how long a collector that has gone holds the others up."""
        super().__init__(NAME, int(lease_s) * 10**9, holder, clock)
        self._api, self._path = api, lease_path(namespace)
        self._seen: tuple[tuple[str, str], int] | None = None  # another's record and when we first saw it so

    def _try(self) -> None:
        deadline = Deadline(self._lease_ns / 1e9 / RENEWALS)
        record = self._api.get(self._path, Record, deadline)
        steady, wall = self._clock.steady(), self._clock.wall()
        generation = self._may(record, steady, wall)
        if not generation:
            self._lost(clean_text((record.spec.holder_identity or "")[:200]))
            return
        try:
            self._write(record, self._claim(generation, wall), deadline)
        except StatusError as error:
            if error.code != 409:
                raise
            # somebody wrote between our look and our claim: the next look says who
            self._held = None
            return
        self._took(generation, record.spec.holder_identity or "nobody", steady, wall)

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

    def _give_back(self, held: Held) -> None:
        deadline = Deadline(self._lease_ns / 1e9 / RENEWALS)
        record = self._api.get(self._path, Record, deadline)
        if (record.spec.holder_identity, record.spec.lease_transitions) == (self.holder, held.generation):
            self._write(record, {"holderIdentity": None}, deadline)
