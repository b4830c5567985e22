"""Python loads this at its start where `gpuvigil run` put its folder first; then the one that it hides."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent

try:
    from gpuvigil import auto

    auto.install()
except Exception:  # noqa: BLE001, S110 - a job never fails because of us, not even by a broken install
    pass

_rest = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _rest)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
