"""The root's hold: a file that job units can test (`ConditionPathExists=!/var/lib/gpuvigil-helper/held`).

It outlives a reboot. It carries whose it is, so that it is taken back by its owner alone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from gpuvigil.checkpoints import write_durably
from gpuvigil_protos.order import Order


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Whose hold it is; one that a person wrote by hand belongs to "a person"."""

    incident: str = "a person"
    action: str = ""
    generation: int = 0


class HoldFile:
    """One file. Raises OSError where it cannot be written."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> Hold | None:
        """Return the hold, None when there is none. What cannot be read is a hold of a person's."""
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=Hold)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            return Hold()

    def put(self, order: Order) -> None:
        """Hold, on disk when it returns."""
        hold = Hold(incident=order.incident, action=order.action, generation=order.generation)
        write_durably(self.file, msgspec.json.encode(hold))

    def clear(self) -> None:
        """Take the hold back."""
        self.file.unlink(missing_ok=True)
