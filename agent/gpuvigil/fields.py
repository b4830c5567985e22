"""Places among a record's numbers: seconds, eight phases (each at its code), tokens, loss, norm, memory."""

from __future__ import annotations

from gpuvigil import layout

PHASE_CODES = {name: code for code, name in enumerate(layout.PHASES)}
SECONDS, TOKENS, LOSS, GRADIENT = 0, 9, 10, 11
EMPTY = [0.0] * TOKENS + [float("nan")] * 4
