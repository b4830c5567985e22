"""The local pause: while one of these files is there, no program of ours has an effect on this node.

Looked at before each effect, so it holds at once, with the collector down, and over restarts. What is written
in the file is told as the reason. A file that cannot be looked at counts as a pause.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

FILES: Final = ("/run/gpuvigil/pause", "/etc/gpuvigil/pause")
"""The first goes with a reboot; the second stays, and only root can take it away."""
_REASON_MAX: Final = 200


def paused(files: Iterable[str | Path] = FILES) -> str:
    """Return which file pauses this node and why, "" when none does."""
    for file in map(Path, files):
        try:
            with file.open("rb") as opened:
                words = opened.read(_REASON_MAX).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror}): taken as a pause"
        text = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return f"{file}: {text or 'no reason given'}"
    return ""
