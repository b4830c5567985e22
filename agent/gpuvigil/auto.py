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

from gpuvigil.handles import Step
from gpuvigil.loop import Monitor, monitor

_MODULE = "torch.optim.optimizer"
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


class Optimizers:
    """Ends a step at each step of one optimizer: the first that stepped, the others belong to it.

    What comes before its first step is set-up and no step.
    """

    def __init__(self, to: Monitor) -> None:
        self._monitor = to
        self._first: Optional[int] = None
        self._step: Any = None

    def stepped(self, optimizer: Any, *_: Any) -> None:
        """Take one call of torch's hook; a loop that uses the monitor itself knows better."""
        if self._monitor.by_hand:
            return
        if self._first is None:
            self._first = id(optimizer)
        if id(optimizer) == self._first:
            if self._step is not None:
                self._step.__exit__(None, None, None)
            self._step = Step(self._monitor).__enter__()


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
        hook(Optimizers(monitor).stepped)


def trains() -> bool:
    """True for a rank of a launcher, and for the command of `gpuvigil run` itself: `python train.py`.

    Helpers that such a process starts are left alone; GPUVIGIL_AUTO=single has them watched, where a script
    stands between `gpuvigil run` and a training of one process.
    """
    if any(name in os.environ for name in _RANKS) or os.environ.get("GPUVIGIL_AUTO") == "single":
        return True
    return os.environ.get("GPUVIGIL_RUN") == str(os.getppid())


def install() -> None:
    """Watch for torch in a process that trains; the hook waits for its first optimizer's step."""
    if not trains():
        return
    if _MODULE in sys.modules:
        register(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _Finder())
