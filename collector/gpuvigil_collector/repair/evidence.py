"""Findings as the safety kernel reads them: whose word each is, and whether it is fatal by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gpuvigil_collector.action import Signal, TrustOrigin
from gpuvigil_detectors.base import Finding

FATAL_RULES: Final = frozenset({"gpu_lost"})
"""Structural facts that need no second word: the driver or the kernel itself says that the GPU is gone."""
# a finding's origin may name several, "driver+kernel_log"; the first that is found here counts
_ORIGINS: Final[tuple[tuple[str, TrustOrigin], ...]] = (
    ("kernel_log", "driver"), ("driver", "driver"), ("fabric", "fabric"), ("host", "host"),
    ("scheduler", "scheduler"), ("peers", "peers"), ("job", "job"), ("agent", "agent"),
)  # fmt: skip
_SIGNALS_MAX: Final = 50


def signals_of(findings: Iterable[Finding]) -> tuple[Signal, ...]:
    """Return one signal a finding that may notify, cause first, 50 at most."""
    found = [
        Signal(
            origin=origin_of(finding),
            rule=f"{finding.detector}.{finding.rule}",
            start_ns=finding.start_ns,
            fatal=is_fatal(finding),
            synthetic=finding.synthetic,
        )
        for finding in findings
        if finding.notify
    ]
    return tuple(found[:_SIGNALS_MAX])


def origin_of(finding: Finding) -> TrustOrigin:
    """Return whose word a finding is; a score of its own makes it a statistic, whatever it was read from."""
    if finding.p_value is not None:
        return "statistics"
    words = set(finding.origin.split("+"))
    return next((origin for word, origin in _ORIGINS if word in words), "statistics")


def is_fatal(finding: Finding) -> bool:
    """Tell whether the catalogue lists this fact as fatal by itself; only driver and kernel can say such."""
    if origin_of(finding) != "driver" or finding.severity != "critical":
        return False
    listed = ("fatal", "yes") in finding.evidence.facts
    asked = finding.rule == "recovery_action" and bool(finding.evidence.observed)
    return listed or asked or finding.rule in FATAL_RULES
