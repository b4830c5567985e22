"""The verdict that a node's prolog, epilog or health check reads (deploy/slurm/gpuvigil-verdict).

Seven lines of text, one fact each, and an Ed25519 signature over all its bytes in a file beside it. The agent
carries both to the node and can make neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Place = Literal["health", "prolog", "epilog"]
PLACES: Final[tuple[Place, ...]] = ("health", "prolog", "epilog")
LEAD_MAX_S: Final = 3600
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_REASON: Final = re.compile(r"[ -~]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVerdict:
    """What the safety kernel allowed: that `at` these places a node refuses work until expires_s (epoch).

    node: as Slurm calls it. boot: its boot id; a verdict does not outlive a reboot. action: the action's id.
    """

    node: str
    boot: str
    at: tuple[Place, ...]
    action: str
    expires_s: int
    reason: str

    def text(self, now_s: int) -> bytes:
        """Return the bytes to sign. Raises ValueError that names the field."""
        for name in ("node", "boot", "action"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise ValueError(
                    f"{name}: expected a word of at most 128 characters, got {getattr(self, name)[:40]!r}"
                )
        if not self.at or len(set(self.at)) != len(self.at) or not set(self.at) <= set(PLACES):
            raise ValueError(f"at: expected some of {', '.join(PLACES)}, got {self.at!r}")
        if not now_s < self.expires_s <= now_s + LEAD_MAX_S:
            raise ValueError(
                f"expires_s: expected at most {LEAD_MAX_S} s from now, got {self.expires_s - now_s} s"
            )
        if not _REASON.fullmatch(self.reason):
            raise ValueError(f"reason: expected 1 to 200 printable characters, got {self.reason[:40]!r}")
        lines = (
            "gpuvigil-verdict 1",
            f"node {self.node}",
            f"boot {self.boot}",
            f"at {' '.join(self.at)}",
            f"action {self.action}",
            f"expires {self.expires_s}",
            f"reason {self.reason}",
        )
        return "".join(f"{line}\n" for line in lines).encode("ascii")
