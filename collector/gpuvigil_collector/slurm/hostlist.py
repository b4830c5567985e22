"""Slurm's short form of many host names: `gn[1-4,7]`, `r[1-2]n[01-16]`, `a,b[3-5]`.

Source: slurm.conf(5). Bounded: one hostile line must not become a million names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

HOSTS_MAX: Final = 20_000
_ONE: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9,-]+\])+")
_PART: Final = re.compile(r"\[([0-9,-]+)\]|([A-Za-z0-9._-]+)")
_RANGE: Final = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")
_NOBODY: Final = ("", "(null)", "None", "N/A")


class BadHostlistError(ValueError):
    """It is no list of hosts, or of too many."""


def expand(text: str) -> tuple[str, ...]:
    """Return the names in Slurm's order; () where there are none. Raises BadHostlistError."""
    if text in _NOBODY:
        return ()
    found: list[str] = []
    for word in _words(text):
        found += itertools.islice(_expand_word(word), HOSTS_MAX + 1)
        if len(found) > HOSTS_MAX:
            raise BadHostlistError(f"more than {HOSTS_MAX} hosts in {text[:60]!r}")
    return tuple(found)


def _words(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    words = re.split(r",(?![0-9,-]*\])", text)
    for word in words:
        if not _ONE.fullmatch(word):
            raise BadHostlistError(f"expected names like gn[1-4], got {text[:60]!r}")
    return words


def _expand_word(word: str) -> Iterator[str]:
    parts = [_numbers(inside) if inside else (name,) for inside, name in _PART.findall(word)]
    return map("".join, itertools.product(*parts))


def _numbers(inside: str) -> list[str]:
    found: list[str] = []
    for piece in inside.split(","):
        if (match := _RANGE.fullmatch(piece)) is None:
            raise BadHostlistError(f"expected a range like 1-4, got {piece[:20]!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) > HOSTS_MAX:
            raise BadHostlistError(f"expected a range that grows, by {HOSTS_MAX} at most, got {piece[:40]!r}")
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        if len(found) > HOSTS_MAX:
            raise BadHostlistError(f"more than {HOSTS_MAX} hosts in {inside[:40]!r}")
    return found
