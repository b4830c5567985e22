"""Repeatable noise: every draw is a pure function of integer keys, so two processes see one world.

Source of the mixer: SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import math
import zlib

_ROOT_3 = math.sqrt(3.0)
_MASK = (1 << 64) - 1


def mix(*keys: int) -> int:
    """Return 64 well-mixed bits of the keys."""
    word = 0
    for key in keys:
        word = (word + key + 0x9E3779B97F4A7C15) & _MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        word ^= word >> 31
    return word


def key_of(text: str) -> int:
    """Turn a name into a key; Python's own hash differs from process to process."""
    return zlib.crc32(text.encode())


def uniform(*keys: int) -> float:
    """Draw from [0, 1)."""
    return (mix(*keys) >> 11) / (1 << 53)


def normal(*keys: int) -> float:
    """Draw from about N(0, 1): four 16-bit uniforms of one word, summed; never beyond 3.5."""
    word = mix(*keys)
    total = (word & 0xFFFF) + (word >> 16 & 0xFFFF) + (word >> 32 & 0xFFFF) + (word >> 48)
    return (total / 65536 - 2.0) * _ROOT_3
