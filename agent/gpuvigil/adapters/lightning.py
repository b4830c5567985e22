"""Lightning (2.x, `lightning` and `pytorch_lightning`): steps, phases, loss, and saves on request.

    from gpuvigil.adapters.lightning import GpuvigilCallback
    Trainer(..., callbacks=[GpuvigilCallback("checkpoints/on-request.ckpt")])
Source: lightning.pytorch.Callback.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Optional

from gpuvigil.adapters import base_class, tell_save
from gpuvigil.agreement import Agreement, Peers
from gpuvigil.loop import monitor

Callback: Any = base_class("Callback", "lightning.pytorch", "pytorch_lightning")


class GpuvigilCallback(Callback):
    """One a Trainer. save_to: where a checkpoint on request goes (`trainer.save_checkpoint`); None: none."""

    def __init__(self, save_to: Optional[str] = None, every: int = 10) -> None:
        self._save_to, self._every = save_to, every
        self._agreement: Any = None
        self._step: Any = None
        self._phase: Any = None

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Agree on a gloo group of our own; every rank comes here."""
        if self._save_to is not None:
            self._agreement = Agreement(Peers(600.0).reduce, self._every)
            monitor.offer("on_request", "save")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Open a step; the batch is there already, so its wait lies between two."""
        self._step = monitor.step().__enter__()

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        """Log the loss; what follows is backward."""
        if self._step is not None:
            self._step.log(loss=loss.detach())
            self._enter("backward")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """What follows is the optimizer's."""
        self._enter("optimizer")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Close the step, and save where all ranks have agreed to."""
        self._enter("")
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._agreement is not None and self._agreement.step(monitor.request()):
            self._save(trainer)

    def _enter(self, name: str) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
        self._phase = monitor.phase(name) if name else None
        if self._phase is not None:
            self._phase.__enter__()

    def _save(self, trainer: Any) -> None:
        asked, began, path = monitor.request_id(), time.monotonic(), Path(str(self._save_to))
        with contextlib.suppress(Exception), monitor.phase("checkpoint"):  # training goes on: it is told
            trainer.save_checkpoint(str(path))
        tell_save(path, int(trainer.global_step), time.monotonic() - began, asked)
