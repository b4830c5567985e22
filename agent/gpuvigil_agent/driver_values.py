"""NVML's own numbers, and what raw values mean: blanks are no values, texts are hostile until cleaned.

Blanks are those of NVIDIA's tools: INT32 0x7ffffff0.., INT64 0x7ffffffffffffff0.., and all ones.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from gpuvigil_agent.driver_errors import NotSupported

BLANKS_32: Final = frozenset([*range(0x7FFFFFF0, 0x80000000), 0xFFFFFFFF])
BLANKS_64: Final = frozenset([*range(0x7FFFFFFFFFFFFFF0, 0x8000000000000000), 0xFFFFFFFFFFFFFFFF])
FIELD_MEMORY_TEMPERATURE: Final = 82
FIELD_NVLINK_REPLAYS: Final = 161  # the scope id is the link, for these three
FIELD_NVLINK_RECOVERIES: Final = 162
FIELD_NVLINK_CRC: Final = 163
FIELD_RECOVERY_ACTION: Final = 230  # driver 570 and newer
NVLINK_REPLAY, NVLINK_RECOVERY, NVLINK_CRC_FLIT, NVLINK_CRC_DATA = 0, 1, 2, 3  # nvmlNvLinkErrorCounter_t
_SUCCESS: Final = 0
_FIELD_TYPES: Final[dict[int, tuple[str, frozenset[int]]]] = {  # nvmlValueType_t: member, blanks
    0: ("dVal", BLANKS_64),
    1: ("uiVal", BLANKS_32),
    2: ("ulVal", BLANKS_64),
    3: ("ullVal", BLANKS_64),
    4: ("sllVal", BLANKS_64),
    5: ("siVal", BLANKS_32),
}


def number(value: int, blanks: frozenset[int]) -> int:
    """Return the value. Raises NotSupported for a blank."""
    if value in blanks:
        raise NotSupported("nvml", f"blank value {value}")
    return int(value)


def field_number(status: int, kind: int, union: Any) -> float | None:
    """Read one nvmlFieldValue_t; None when NVML refused it, its type is unknown or it is a blank."""
    if status != _SUCCESS or kind not in _FIELD_TYPES:
        return None
    member, blanks = _FIELD_TYPES[kind]
    value = getattr(union, member)
    return float(value) if math.isfinite(value) and value not in blanks else None


def text(raw: bytes | str) -> str:
    """Make the driver's text printable ASCII of at most 96 characters: it ends in labels and terminals."""
    plain = raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw
    return re.sub(r"[^ -~]", "_", plain)[:96]


def pci_address(raw: str) -> str:
    """Turn NVML's `00000000:1B:00.0` into the kernel's `0000:1b:00.0`."""
    domain, _, rest = raw.lower().partition(":")
    return f"{domain[4:]}:{rest}" if len(domain) == 8 and domain.startswith("0000") else raw.lower()
