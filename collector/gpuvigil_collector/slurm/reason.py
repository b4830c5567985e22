"""Our mark on a node: `gpuvigil: CODE short why [incident ... gN]` in Slurm's Reason field.

A node may be held for several incidents at once: each is named, and the drain ends with the last. Only a text
that we would have written ourselves, to the letter, is ours: one word added by a person makes it theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

OWNER: Final = "gpuvigil:"
HEAD_MAX: Final = 60
"""`sinfo -R` cuts: what a person needs comes first, in so many characters; ids follow."""
INCIDENTS_MAX: Final = 8
_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_MARK: Final = re.compile(
    rf"(gpuvigil: [ -Z^-~]{{1,51}}) \[({_ID}(?: {_ID}){{0,{INCIDENTS_MAX - 1}}}) g(\d{{1,18}})\]"
)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9 .:;+*/()%<>_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A hold of ours. head: `gpuvigil: CODE why`; generation: of the collector that wrote it last."""

    head: str
    incidents: tuple[str, ...]
    generation: int

    def text(self) -> str:
        """Return the Reason as Slurm keeps it."""
        return f"{self.head} [{' '.join(self.incidents)} g{self.generation}]"

    def with_incident(self, incident: str, generation: int) -> Mark:
        """Return the mark that names one incident more. Raises ValueError when it names too many."""
        if incident not in self.incidents and len(self.incidents) >= INCIDENTS_MAX:
            raise ValueError(f"the node is held for {INCIDENTS_MAX} incidents already")
        kept = tuple(each for each in self.incidents if each != incident)
        return replace(self, incidents=(*kept, incident), generation=generation)

    def without(self, incident: str, generation: int) -> Mark | None:
        """Return the mark without an incident; None when no other is left, and the node may be given back."""
        left = tuple(each for each in self.incidents if each != incident)
        return replace(self, incidents=left, generation=generation) if left else None


def make(code: str, why: str, incident: str, generation: int) -> Mark:
    """Return a new mark; what Slurm's command line or its readers could stumble over is left out.

    Raises ValueError for an incident's id that could not be read back.
    """
    if not re.fullmatch(_ID, incident) or generation < 0:
        raise ValueError(f"expected an incident's id and a generation, got {incident[:70]!r}, {generation}")
    words = " ".join(_UNSAFE.sub(" ", f"{code} {why}").split()) or "fault"
    head = f"{OWNER} {words}"
    if len(head) > HEAD_MAX:
        head = head[: HEAD_MAX - 2].rstrip() + ".."
    return Mark(head=head, incidents=(incident,), generation=generation)


def parse(reason: str) -> Mark | None:
    """Return the mark of a Reason that is ours to the letter, else None."""
    if (match := _MARK.fullmatch(reason)) is None:
        return None
    ids = tuple(match[2].split(" "))
    mark = Mark(head=match[1], incidents=ids, generation=int(match[3]))
    return mark if mark.text() == reason and len(set(ids)) == len(ids) else None
