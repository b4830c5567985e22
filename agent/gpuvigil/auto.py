"""The zero-code form: steps of a loop that was not changed, by torch's own hook on the optimizer.

A step ends when the first optimizer of the process has stepped; gradient accumulation is one step so. Torch
is not imported here: what loads it is watched, and the hook is registered when `torch.optim` is there.
Source: torch.optim.optimizer.register_optimizer_step_post_hook, documented since 2.0.
Blind spot: loops that never call an optimizer (evaluation, inference), and the phases within a step.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any, Optional, Sequence

from gpuvigil.loop import Monitor, monitor

_MODULE = "torch.optim.optimizer"
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


class Optimizers:
    """Ends a step at each step of one optimizer: the first that stepped, the others belong to it."""

    def __init__(self, to: Monitor) -> None:
        self._monitor = to
        self._first: Optional[int] = None
        self._step: Any = None

    def begin(self) -> None:
        """Open the first step; what came before it is set-up."""
        if self._step is None:
            self._step = self._monitor.step().__enter__()

    def stepped(self, optimizer: Any, *_: Any) -> None:
        """Take one call of torch's hook."""
        if self._first is None:
            self._first = id(optimizer)
        if id(optimizer) == self._first and self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = self._monitor.step().__enter__()


class _Finder(importlib.abc.MetaPathFinder):
    """Lets one module be found as ever, and calls back once it is loaded."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        found: Optional[ModuleType] = self._inner.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        register(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # resources, source: what tools ask a loader for


def register(module: Any) -> None:
    """Register with torch's optimizers; a torch without the hook leaves the job unseen, and runs."""
    hook = getattr(module, "register_optimizer_step_post_hook", None)
    if hook is not None:
        optimizers = Optimizers(monitor)
        hook(optimizers.stepped)
        optimizers.begin()


def install() -> None:
    """Watch for torch in a process that is a rank; launchers and other helpers are left alone."""
    if not any(name in os.environ for name in _RANKS) and os.environ.get("GPUVIGIL_AUTO") != "single":
        return
    if _MODULE in sys.modules:
        register(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _Finder())
