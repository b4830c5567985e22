"""Callbacks for training frameworks; each imports its framework only when it is itself imported."""

from __future__ import annotations

import os
from pathlib import Path

from gpuvigil.loop import monitor


def tell_save(path: Path, step: int, seconds: float, request: str) -> None:
    """Tell the operator of a checkpoint that a framework has written, or has not."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    word = {"event": "save", "outcome": "saved" if size else "failed", "step": step, "request": request}
    word.update(
        size=size, path=str(path), rank=int(os.environ.get("RANK", "0")), generation=0, seconds=seconds
    )
    monitor.tell(word)
