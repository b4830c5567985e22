"""Puts a signed verdict where Slurm's prolog, epilog and health check look for it; counts what came of it.

The agent cannot sign: it carries bytes. deploy/slurm/gpuvigil-verdict reads them and checks the signature.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

TEXT_MAX: Final = 2048
OWN: Final = Path("/run/gpuvigil-verdict")
"""Where the scripts count, as root."""
_SIGNATURE_BYTES: Final = 64
_COUNTS: Final = (
    "missing",
    "no_key",
    "unreadable",
    "malformed",
    "stale",
    "other_node",
    "other_place",
    "forged",
)


def put(folder: Path, text: bytes, signature: bytes) -> None:
    """Replace the node's verdict as a whole: a reader sees the old or the new.

    Raises ValueError, OSError.
    """
    if not 0 < len(text) <= TEXT_MAX:
        raise ValueError(f"text: expected 1 to {TEXT_MAX} bytes, got {len(text)}")
    if len(signature) != _SIGNATURE_BYTES:
        raise ValueError(f"signature: expected {_SIGNATURE_BYTES} bytes, got {len(signature)}")
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    number = 1 + max((int(each.name) for each in folder.iterdir() if each.name.isdigit()), default=0)
    fresh, link = folder / str(number), folder / "next"
    fresh.mkdir(mode=0o755)
    (fresh / "text").write_bytes(text)
    (fresh / "signature").write_bytes(signature)
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(folder / "current")
    _sweep(folder, fresh.name)


def clear(folder: Path) -> None:
    """Take the verdict back; none is there afterwards. Raises OSError."""
    (folder / "current").unlink(missing_ok=True)
    if folder.is_dir():
        _sweep(folder, "")


def counts(own: Path = OWN) -> Mapping[str, int]:
    """Return how often the node's scripts went on without a verdict that holds, by why, since the boot."""
    found = {}
    for why in _COUNTS:
        with contextlib.suppress(OSError):
            found[why] = (own / "counts" / why).stat().st_size
    return found


def _sweep(folder: Path, kept: str) -> None:
    for each in folder.iterdir():
        if each.name.isdigit() and each.name != kept:
            shutil.rmtree(each, ignore_errors=True)
