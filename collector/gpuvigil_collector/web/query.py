"""Queries and pages of the API: what may be asked, cursors, and clear errors for what may not.

A cursor is opaque: the key of the last item shown, so that a page holds still while the fleet changes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

VERSION: Final = 1
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
_SHOWN_MAX: Final = 100
_CURSOR: Final = "the `next` of an earlier page of this list"
_CURSOR_MAX: Final = 2000
_NS_MAX: Final = 2**63 - 1

Json = dict[str, Any]
Key = tuple[int | str, ...]


class BadQueryError(Exception):
    """A query that cannot be answered: which field, what was expected, what came."""

    def __init__(self, field: str, expected: str, got: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.body = {"error": {"field": field, "expected": expected, "got": printable(got)}}


def printable(text: str) -> str:
    """Escape what is not printable ASCII and cut: the text came from outside."""
    return text[:_SHOWN_MAX].encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class Query:
    """The query string of one request, checked against what the route knows. Raises BadQueryError."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], known: tuple[str, ...]) -> Query:
        """Take the parameters; a stranger or one that comes twice is refused."""
        values: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                expected = f"one of {', '.join(known)}" if known else "no parameter"
                raise BadQueryError(printable(name), expected, value)
            if name in values:
                raise BadQueryError(name, "one value", "two")
            values[name] = value
        return cls(values)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Read one of the words; the first is the default."""
        value = self.values.get(name, choices[0])
        if value not in choices:
            raise BadQueryError(name, f"one of {', '.join(choices)}", value)
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """Read a whole number in [low, high]."""
        text = self.values.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal()) or len(text) > 20 or not low <= int(text) <= high:
            raise BadQueryError(name, f"a whole number from {low} to {high}", text)
        return int(text)

    def time_ns(self, name: str) -> int:
        """Read a time in ns since the epoch; 0 when not given."""
        return self.number(name, 0, 0, _NS_MAX)

    def page(
        self, items: Iterable[Any], key: Callable[[Any], Key], render: Callable[[list[Any]], list[Json]]
    ) -> Json:
        """Answer one page: sort by `key`, go on after the cursor, render only what is shown."""
        limit = self.number("limit", LIMIT_DEFAULT, 1, LIMIT_MAX)
        after = self._cursor()
        ordered = sorted(items, key=key)
        try:
            rest = ordered if after is None else [item for item in ordered if key(item) > after]
        except TypeError:
            raise BadQueryError("cursor", _CURSOR, self.values["cursor"]) from None
        shown = rest[:limit]
        more = _encode(key(shown[-1])) if len(rest) > limit else None
        return {"version": VERSION, "items": render(shown), "next": more}

    def _cursor(self) -> Key | None:
        text = self.values.get("cursor")
        if text is None:
            return None
        try:
            if len(text) > _CURSOR_MAX:
                raise ValueError("too long")
            key = msgspec.json.decode(base64.urlsafe_b64decode(text), type=list[int | str])
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            raise BadQueryError("cursor", _CURSOR, text) from None
        return tuple(key)


def _encode(key: Key) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode("ascii")
