"""Hugging Face Trainer (and what subclasses it: TRL, Axolotl): steps, loss, saves and requests to save.

    from gpuvigil.adapters.huggingface import GpuvigilCallback
    Trainer(..., callbacks=[GpuvigilCallback()])
A request to save sets the Trainer's own `should_save`, at one step on all ranks. Source: TrainerCallback.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gpuvigil.adapters import base_class, tell_save
from gpuvigil.agreement import Agreement, Peers
from gpuvigil.loop import monitor

TrainerCallback: Any = base_class("TrainerCallback", "transformers")


class GpuvigilCallback(TrainerCallback):
    """One a Trainer. on_request: let the operator ask for a checkpoint. every: steps between agreements."""

    def __init__(self, on_request: bool = True, every: int = 10) -> None:
        self._on_request, self._every = on_request, every
        self._agreement: Any = None
        self._step: Any = None
        self._eval: Any = None
        self._logs: Any = {}
        self._asked, self._began = "", 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree on a gloo group of our own; every rank comes here."""
        if self._on_request:
            self._agreement = Agreement(Peers(600.0).reduce, self._every)
            monitor.offer("on_request", "save")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the optimizer's step, with its gradient accumulation."""
        self._step = monitor.step(int(state.global_step)).__enter__()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Count a micro-step."""
        monitor.micro_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Close the step; have the Trainer save where all ranks have agreed to."""
        if self._step is not None:
            monitor.micro_step()
            self._step.log(loss=self._logs.get("loss"), grad_norm=self._logs.get("grad_norm"))
            self._logs = {}
            self._step.__exit__(None, None, None)
            self._step = None
        self._began = time.monotonic()
        if self._agreement is not None and self._agreement.step(monitor.request()):
            self._asked, control.should_save = monitor.request_id(), True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep what the Trainer logs for the next step: it speaks between two."""
        self._logs = logs or {}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluation may take long and is no hang."""
        if self._eval is None:
            self._eval = monitor.phase("eval")
            self._eval.__enter__()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Back to training."""
        if self._eval is not None:
            self._eval.__exit__(None, None, None)
            self._eval = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell that a checkpoint is there; the Trainer has written it."""
        path = Path(args.output_dir) / ("checkpoint-%d" % state.global_step)
        tell_save(path, int(state.global_step), time.monotonic() - self._began, self._asked)
        self._asked = ""
