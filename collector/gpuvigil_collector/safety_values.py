"""The plain values that the safety kernel reads: each is checked, and what is not sane raises Unknown."""

from __future__ import annotations

from typing import Final

SECOND_NS: Final = 1_000_000_000


class Unknown(Exception):  # noqa: N818 - it is no error of ours: it is what denies
    """Something that a gate needs is missing, malformed or contradicts itself; the text says what."""


def text(value: object, what: str) -> str:
    """Return a text as it is; raises Unknown for anything else."""
    if type(value) is not str:
        raise Unknown(f"{what} is not known ({type(value).__name__})")
    return value


def count(value: object, what: str, low: int = 0) -> int:
    """Return a whole number of at least `low`; raises Unknown for anything else."""
    if type(value) is not int or value < low:
        raise Unknown(f"{what} is {shown(value)}: not a whole number from {low} on")
    return value


def moment(value: object, now_ns: int, what: str) -> int:
    """Return a time that lies in the past; raises Unknown for the future, 0 and nonsense."""
    if count(value, what, 1) > now_ns:
        raise Unknown(f"{what} lies {(value - now_ns) / SECOND_NS:.1f} s in the future")  # type: ignore[operator]
    return value  # type: ignore[return-value]


def shown(value: object) -> str:
    """Return a short printable form of what came from outside."""
    return ascii(value)[:80] if type(value) in (str, int, float, bool, type(None)) else type(value).__name__


def part(share: float, whole: int) -> float:
    """Return a share of a whole without the dust of binary fractions: 7 % of 100 is 7."""
    return round(share * whole, 6)
