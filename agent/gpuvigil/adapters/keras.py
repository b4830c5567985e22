"""Keras 3 on the torch backend: steps and loss.

    from gpuvigil.adapters.keras import GpuvigilCallback
    model.fit(..., callbacks=[GpuvigilCallback()])

Source: keras.callbacks.Callback; Keras passes `logs` by name and hands floats of the running mean.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from gpuvigil.adapters import base_class
from gpuvigil.loop import monitor

Callback: Any = base_class("Callback", "keras.callbacks")


class GpuvigilCallback(Callback):
    """One a `fit`."""

    def __init__(self) -> None:
        super().__init__()
        self._step: Any = None
        self._eval: Any = None

    def on_train_batch_begin(self, batch: int, logs: Optional[Dict[str, Any]] = None) -> None:
        """Open a step."""
        self._step = monitor.step().__enter__()

    def on_train_batch_end(self, batch: int, logs: Optional[Dict[str, Any]] = None) -> None:
        """Log the loss and close the step."""
        if self._step is not None:
            self._step.log(loss=(logs or {}).get("loss"))
            self._step.__exit__(None, None, None)
            self._step = None

    def on_test_begin(self, logs: Optional[Dict[str, Any]] = None) -> None:
        """Evaluation may take long and is no hang."""
        self._eval = monitor.phase("eval")
        self._eval.__enter__()

    def on_test_end(self, logs: Optional[Dict[str, Any]] = None) -> None:
        """Back to training."""
        if self._eval is not None:
            self._eval.__exit__(None, None, None)
            self._eval = None
