"""Text for people: what the API says is hostile until it has passed through here."""

from __future__ import annotations

import re
import time
import unicodedata
from typing import Final

from rich.markup import escape

_TEXT_MAX_CHARACTERS: Final = 2000
_UUID: Final = re.compile(r"((?:GPU|MIG)-[0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NEVER = "-"


def clean(value: object, limit: int = _TEXT_MAX_CHARACTERS) -> str:
    """Make text from outside safe for a terminal: one line, no control, format or bidi characters, bounded.

    Every character of Unicode's C categories (control, format, surrogate, private, unassigned) and every
    line or paragraph separator becomes its escape, so that nothing can move the cursor, colour or reorder.
    """
    text = str(value)
    cut = text[:limit] + ("…" if len(text) > limit else "")
    return "".join(_visible(character) for character in cut)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in {"Zl", "Zp"}:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def markup(value: object, limit: int = _TEXT_MAX_CHARACTERS) -> str:
    """Clean text and escape rich's markup, so that `[red]` in a node's note stays text."""
    return escape(clean(value, limit))


def short(value: object, limit: int = _TEXT_MAX_CHARACTERS) -> str:
    """As `markup`, with a GPU's UUID cut to its first 8 digits: enough to tell GPUs apart on a screen."""
    return markup(_UUID.sub(r"\1…", str(value)), limit)


def clock(time_ns: object) -> str:
    """Say a time as local `HH:MM:SS`; with the date when it is not of the last 20 hours."""
    if not isinstance(time_ns, int) or time_ns <= 0:
        return _NEVER
    seconds = time_ns / 1e9
    near = abs(time.time() - seconds) < 20 * 3600
    try:
        return time.strftime("%H:%M:%S" if near else "%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return _NEVER


def duration(seconds: float) -> str:
    """Say a duration with one or two units: `0.8 s`, `42 s`, `3 min 20 s`, `5 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def since(time_ns: object, now_ns: int) -> str:
    """Say how long ago something was; `-` when it never was."""
    if not isinstance(time_ns, int) or time_ns <= 0:
        return _NEVER
    return f"{duration(max(0.0, (now_ns - time_ns) / 1e9))} ago"


def quantity(value: object) -> float:
    """Return a number to reckon with; 0 for what is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def number(value: object) -> str:
    """Say a number with at most four significant digits, anything else as clean text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
