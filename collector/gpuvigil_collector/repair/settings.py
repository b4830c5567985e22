"""[remediation] of the collector's file: mode, policy, limits. A limit that is none is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, Literal

import msgspec

from gpuvigil_collector.action import Limits, Mode
from gpuvigil_protos.settings import ConfigError, Seconds

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "jobs_an_hour": (0, 1000), "gpus_share_an_hour": (0, 1), "job_stops_an_hour": (0, 100),
    "job_stops_a_day": (0, 1000), "job_gpus_without_approval": (0, 1_000_000), "unavailable_share": (0, 1),
    "unavailable_max": (1, 10_000), "domain_pause": (0, 86400), "node_attempts_a_day": (1, 100),
    "storm_nodes": (2, 10_000), "storm_share": (0.001, 1), "storm_domains": (1, 1000),
    "storm_window": (60, 86400), "silent_nodes": (1, 10_000), "silent_share": (0.001, 1),
}  # fmt: skip
_PARTITIONS_MAX: Final = 1000
_SAFE: Final = Limits()


class LimitSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The safety limits; shares are 0 to 1. They hold in every mode, and approval lifts only what says so.

    jobs_an_hour, gpus_share_an_hour: what may be interrupted. unavailable_*: nodes out of service by us,
    max(1, min(share, max)). storm_*, silent_*: from how many nodes on nothing is done at all.
    """

    jobs_an_hour: int = _SAFE.jobs_an_hour
    gpus_share_an_hour: float = _SAFE.gpus_share_an_hour
    job_stops_an_hour: int = _SAFE.job_stops_an_hour
    job_stops_a_day: int = _SAFE.job_stops_a_day
    job_gpus_without_approval: int = _SAFE.job_gpus_without_approval
    unavailable_share: float = _SAFE.unavailable_share
    unavailable_max: int = _SAFE.unavailable_max
    domain_pause: Seconds = Seconds(_SAFE.domain_pause_s)
    node_attempts_a_day: int = _SAFE.node_attempts_a_day
    storm_nodes: int = _SAFE.storm_nodes
    storm_share: float = _SAFE.storm_share
    storm_domains: int = _SAFE.storm_domains
    storm_window: Seconds = Seconds(_SAFE.storm_window_s)
    silent_nodes: int = _SAFE.silent_nodes
    silent_share: float = _SAFE.silent_share

    def limits(self) -> Limits:
        """Return them as the kernel takes them."""
        found = {f.name: getattr(self, f.name.removesuffix("_s")) for f in fields(Limits)}
        plain: dict[str, Any] = {
            name: float(value) if isinstance(value, Seconds) else value for name, value in found.items()
        }
        return Limits(**plain)

    def check(self, where: str) -> None:
        """Raise ConfigError for a limit that is none."""
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{where}.{name}: expected {low:g} to {high:g}, got {value:g}")


class Remediation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What is done about incidents.

    mode: observe says what it would do, recommend asks a person, act does it; partition_modes: otherwise for
    some partitions. policy: the site's file over the shipped one. scheduler: who starts work on the nodes.
    clean_wait: how long a mended node must stay clean, doubled for a relapse.
    lease: a file that all collectors of this host share; only its holder acts. site: the site's file of
    failure domains.
    """

    mode: Mode = "observe"
    partition_modes: dict[str, Mode] = msgspec.field(default_factory=dict)
    policy: str = ""
    site: str = ""
    scheduler: Literal["none", "slurm", "kubernetes", "supervisor"] = "none"
    clean_wait: Seconds = Seconds(900)
    approval_expires: Seconds = Seconds(3600)
    lease: str = ""
    limits: LimitSettings = LimitSettings()

    def check(self, origin: str) -> None:
        """Raise ConfigError for what cannot be meant."""
        self.limits.check(f"{origin}: remediation.limits")
        if len(self.partition_modes) > _PARTITIONS_MAX:
            raise ConfigError(f"{origin}: remediation.partition_modes: expected at most {_PARTITIONS_MAX}")
        for name, low, high in (("clean_wait", 1.0, 86400.0), ("approval_expires", 10.0, 7 * 86400.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                where = f"{origin}: remediation.{name}"
                raise ConfigError(f"{where}: expected {low:g} s to {high:g} s, got {value:g} s")
