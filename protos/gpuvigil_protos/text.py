"""Text from outside, made fit for a terminal, a log line and a label."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with a question mark in the place of each character that cannot be printed."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
