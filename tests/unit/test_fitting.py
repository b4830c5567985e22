"""Models grown beside the tick: taken over at the second that was set, from the rows as they were."""

from __future__ import annotations

import threading

import numpy as np

from gpuvigil_detectors.fitting import Fitting
from gpuvigil_detectors.forest import Forest

ROWS = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)


class Slow(Forest):
    """A forest that is grown only once it is let, and tells in which thread."""

    gate = threading.Event()
    threads: list[int] = []

    def fresh(self):
        return Slow(seed=3)

    def fit(self, features):
        assert self.gate.wait(timeout=30)
        self.threads.append(threading.get_ident())
        super().fit(features)


def test_models_come_at_their_second_however_fast_they_were_and_from_the_rows_of_the_start():
    fitting, rows, old = Fitting(), ROWS.copy(), Slow(seed=3)
    Slow.gate.clear()
    fitting.begin([old], rows, due_ns=100)
    assert fitting.busy and fitting.take(99) is None
    rows[:] = 0.0
    Slow.gate.set()
    (new,) = fitting.take(100)
    assert not fitting.busy and fitting.take(101) is None
    assert new is not old and new.fitted and not old.fitted
    assert Slow.threads and Slow.threads[-1] != threading.get_ident(), "no tick fits a model"
    alone = Forest(seed=3)
    alone.fit(ROWS)
    assert np.array_equal(alone.score(ROWS), new.score(ROWS))
