"""What speaks for an action: signals checked, and whose word each is in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from .action import Signal, TrustOrigin
from .safety_facts import Question
from .safety_values import Unknown, moment, shown, text

ORIGINS: Final[Mapping[str, str]] = {origin: origin for origin in get_args(TrustOrigin)} | {"fabric": "host"}
"""Whose word an origin's is in the end: host and fabric are one (DESIGN, trust origins)."""


def signals_of(question: Question) -> tuple[Signal, ...]:
    """Return the evidence; raises Unknown: malformed, of the future, synthetic and real mixed."""
    given = question.proposal.evidence
    if type(given) is not tuple:
        raise Unknown("the evidence is not known")
    for signal in given:
        if type(signal) is not Signal or signal.origin not in ORIGINS or not text(signal.rule, "a rule"):
            raise Unknown("a signal of the evidence is malformed")
        if type(signal.fatal) is not bool or type(signal.synthetic) is not bool:
            raise Unknown(f"signal {shown(signal.rule)}: fatal or synthetic is not known")
        moment(signal.start_ns, question.now, f"signal {shown(signal.rule)}: its start")
    if type(question.proposal.synthetic) is not bool:
        raise Unknown("whether the proposal is synthetic is not known")
    if any(signal.synthetic is not question.proposal.synthetic for signal in given):
        raise Unknown("synthetic and real evidence are mixed")
    return given


def origins_of(signals: tuple[Signal, ...]) -> list[str]:
    """Return the trust origins that speak; statistics are none."""
    return sorted({ORIGINS[signal.origin] for signal in signals} - {"statistics"})
