"""Holds of this node: while there is one it takes no new supervised job. They outlive restart and reboot.

Each incident has its own hold, so that one that ends frees nothing that another still needs. A hold that is
not ours (`by`) is never taken back by us; a file that cannot be read is a hold of a person's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from gpuvigil.checkpoints import write_durably

OURS: Final = "gpuvigil"
_HOLDS_MAX: Final = 50
_UNREADABLE: Final = "?"  # such a file is left as it is


class StaleError(Exception):
    """A command of a collector that lost its right to act to a newer one."""


class Hold(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One hold: whose, for which action, and why."""

    incident: str
    action: str = ""
    generation: int = 0
    reason: str = ""
    by: str = OURS


class _File(msgspec.Struct, frozen=True, kw_only=True):
    holds: list[Hold] = []
    generation: int = 0


class Holds:
    """One file. Raises OSError where it cannot be written."""

    def __init__(self, file: Path) -> None:
        self._path = file

    def all(self) -> list[Hold]:
        """Return every hold, oldest first."""
        return self._read().holds

    def check_generation(self, generation: int) -> None:
        """Refuse an older collector than the newest seen, remember a newer one. Raises StaleError."""
        found = self._read()
        if generation < found.generation:
            raise StaleError(f"generation: expected {found.generation} or newer, got {generation}")
        if generation > found.generation and _UNREADABLE not in (hold.incident for hold in found.holds):
            self._write(_File(holds=found.holds, generation=generation))

    def put(self, hold: Hold) -> None:
        """Hold, on disk when it returns; the same incident's hold stays as it was."""
        found = self._read()
        if all(other.incident != hold.incident for other in found.holds):
            if len(found.holds) >= _HOLDS_MAX:
                raise OSError(28, f"more than {_HOLDS_MAX} holds")
            self._write(_File(holds=[*found.holds, hold], generation=found.generation))

    def take_back(self, incident: str) -> None:
        """Take our hold of an incident back, if there is one."""
        found = self._read()
        left = [hold for hold in found.holds if hold.incident != incident or hold.by != OURS]
        if left != found.holds:
            self._write(_File(holds=left, generation=found.generation))

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return _File()
        except (OSError, msgspec.DecodeError):
            return _File(
                holds=[Hold(incident=_UNREADABLE, by="a person", reason=f"{self._path.name} cannot be read")]
            )

    def _write(self, file: _File) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, msgspec.json.encode(file))
