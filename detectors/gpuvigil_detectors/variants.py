"""Variants of one report: what the registers or the unit in its line say, where the vendor tells them apart.

The words come from outside: what cannot be read matches no variant, and the row itself speaks.
Source: NVIDIA's NVLink Xid workflow (registers of Xid 74), NVLink5 sub-codes (Xid 149: intrinfo bits 20-25).
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from gpuvigil_detectors.base import Severity

_WORD: Final = re.compile(r"0x[0-9a-fA-F]{1,8}(?![0-9a-zA-Z])")
_WORDS_MAX: Final = 8


class Variant(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One way a line may read, and what then differs from its row.

    unit: what the event's unit begins with. field: the event's words. within: bits by word; it matches when
    bits are set, and there alone. values: of the `width` bits from `shift` on of the first word. name: part
    of the rule's name. settle_s: None is the row's.
    """

    name: str
    field: Literal["", "registers", "words"] = ""
    severity: Severity
    action: str
    within: list[list[int]] = []
    values: list[int] = []
    shift: int = 0
    width: int = 32
    unit: str = ""
    notify: bool = True
    fault_class: str = msgspec.field(name="class", default="")
    sticky_s: float | None = None
    settle_s: float | None = None

    def matches(self, fields: dict[str, str]) -> bool:
        """Tell whether an event's fields read so."""
        if not fields.get("unit", "").startswith(self.unit):
            return False
        if not self.field:
            return True
        words = [int(word, 16) for word in _WORD.findall(fields.get(self.field, ""))[:_WORDS_MAX]]
        if self.values:
            return bool(words) and words[0] >> self.shift & (1 << self.width) - 1 in self.values
        masks = [sum(1 << bit for bit in bits) for bits in self.within]
        masks += [0] * (len(words) - len(masks))
        return any(words) and not any(word & ~mask for word, mask in zip(words, masks, strict=False))


def variant_of(variants: list[Variant], fields: dict[str, str]) -> Variant | None:
    """Return the first that matches."""
    return next((variant for variant in variants if variant.matches(fields)), None)
