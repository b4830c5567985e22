"""`gpuvigil pause --local`: no program of ours has an effect on this node. A file says so; nobody is asked.

Of the files that agent, helper and the collector of this host look at (gpuvigil_protos.pause) the one that
stays over a reboot is written where it may be, else the one under /run.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import CliError
from gpuvigil_protos import pause
from gpuvigil_protos.text import printable

STAYS_FIRST: Final = tuple(Path(file) for file in reversed(pause.FILES))
_WHY_MAX: Final = 150


def hold(why: str, files: Sequence[Path] | None = None) -> Path:
    """Pause this node; return the file that was written. Raises CliError where none can be."""
    text = printable(why[:_WHY_MAX])
    refused = []
    for file in files or STAYS_FIRST:
        try:
            _write(file, f"{_who()}: {text or 'no reason given'}\n")
        except OSError as error:
            refused.append(f"{file}: {error.strerror or error}")
        else:
            return file
    raise CliError(f"this node is not paused: {'; '.join(refused)}. Expected to run as root")


def lift(files: Sequence[Path] | None = None) -> list[Path]:
    """Remove every file that pauses this node; return them. Raises CliError, status 1 for none."""
    removed, kept = [], []
    for file in files or STAYS_FIRST:
        try:
            file.unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            kept.append(f"{file}: {error.strerror or error}")
        else:
            removed.append(file)
    if kept:
        raise CliError(f"this node is still paused: {'; '.join(kept)}. Expected to run as root")
    if not removed:
        raise CliError("no file pauses this node", 1)
    return removed


def _write(file: Path, text: str) -> None:
    """Put the file in place whole; a link that somebody left under its name is replaced, never followed."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".pause-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            os.fchmod(opened.fileno(), 0o644)  # agent and helper run as other users, and must see why
            os.fsync(opened.fileno())
        Path(name).replace(file)
    except OSError:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _who() -> str:
    try:
        return os.environ.get("SUDO_USER", "")[:64] or getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return f"uid {os.getuid()}"
