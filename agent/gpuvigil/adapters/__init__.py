"""Callbacks for training frameworks; each imports its framework only when it is itself imported."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from gpuvigil.loop import monitor


def base_class(name: str, *modules: str) -> Any:
    """Return a framework's class from the first of these modules that has it.

    Raises ImportError that names what was looked for, and why the last of them would not do.
    """
    why = ""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            why = str(error)
    raise ImportError("%s: expected %s to have it: %s" % (name, " or ".join(modules), why), name=modules[0])


def tell_save(path: Path, step: int, seconds: float, request: str) -> None:
    """Tell the operator of a checkpoint that a framework has written, or has not."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    outcome, rank = "saved" if size else "failed", int(os.environ.get("RANK", "0"))
    monitor.tell({"event": "save", "outcome": outcome, "step": step, "size": size, "path": str(path),
                  "rank": rank, "generation": 0, "seconds": seconds, "request": request})  # fmt: skip
