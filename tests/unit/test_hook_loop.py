"""The monitor in a loop: what it tells of right use, and that wrong use is counted and never raised."""

from __future__ import annotations

import math
import os
import threading
import time

import numpy as np
import pytest

from gpuvigil import layout, ring_read
from gpuvigil.identity import identity
from gpuvigil.loop import Monitor

DATA, FORWARD, CHECKPOINT = (layout.PHASES.index(name) - 1 for name in ("data", "forward", "checkpoint"))


@pytest.fixture
def monitor(monkeypatch) -> Monitor:
    monkeypatch.setenv("GPUVIGIL_SOCKET", "/nonexistent/hook.sock")
    return Monitor()


def records(monitor: Monitor) -> list[ring_read.Record]:
    return ring_read.records(monitor._ring._map, 0, monitor._ring.written)[0]


def faults(monitor: Monitor) -> dict[str, int]:
    return {name: count for name, count in ring_read.faults(monitor._ring._map).items() if count}


def test_steps_phases_and_numbers_of_a_plain_loop(monitor: Monitor) -> None:
    for step in range(3):
        with monitor.phase("data"):
            time.sleep(0.02)
        with monitor.step() as s:
            with monitor.phase("forward"):
                time.sleep(0.03)
                with monitor.phase("checkpoint"):
                    time.sleep(0.01)
            s.log(loss=1.0 / (step + 1), tokens=10, grad_norm=np.float32(0.5))
    first, *_, last = records(monitor)
    assert [record.step for record in records(monitor)] == [0, 1, 2]
    assert first.flags & layout.FLAG_FIRST and not last.flags & layout.FLAG_FIRST
    assert last.flags & layout.FLAG_CHECKPOINT
    assert last.phases[DATA] >= 0.02, "the wait before the step counts to it"
    assert 0.03 <= last.phases[FORWARD] < last.seconds - last.phases[CHECKPOINT], "nested time counts once"
    assert last.seconds >= 0.06 >= last.phases[CHECKPOINT] >= 0.01
    assert (last.tokens, last.gradient_norm) == (10, 0.5)
    assert last.loss == pytest.approx(1 / 3)
    assert faults(monitor) == {}


def test_decorators_and_gradient_accumulation(monitor: Monitor) -> None:
    @monitor.phase("forward")
    def forward() -> int:
        monitor.micro_step()
        return 7

    @monitor.step()
    def step() -> int:
        return forward() + forward()

    assert [step(), step()] == [14, 14]
    assert [record.micro_steps for record in records(monitor)] == [2, 2]


def test_a_step_that_raises_passes_the_exception_on_and_is_no_step(monitor: Monitor) -> None:
    with pytest.raises(ZeroDivisionError), monitor.step():
        1 / 0  # noqa: B018
    with monitor.step():
        pass
    assert [record.step for record in records(monitor)] == [1]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda m, s: s.log(loss="two"), {"bad_value": 1}),
        (lambda m, s: s.log(tokens=-1), {"bad_value": 1}),
        (lambda m, s: s.log(loss=[1.0]), {"bad_value": 1}),
        (lambda m, s: s.log(lose=1.0), {"bad_value": 1}),
        (lambda m, s: s.log(loss=True), {"bad_value": 1}),
        (lambda m, s: m.step().__enter__(), {"nested_step": 1}),
        (lambda m, s: m.phase("fowrard").__enter__(), {"unknown_phase": 1}),
        (lambda m, s: m.phase(7).__enter__(), {"unknown_phase": 1}),
        (lambda m, s: m.step(-5), {"bad_value": 1}),
        (lambda m, s: m.phase("eval").__exit__(None, None, None), {}),
    ],
)
def test_wrong_use_is_counted_and_never_raised(monitor: Monitor, use, expected) -> None:
    with monitor.step() as s:
        use(monitor, s)
    with monitor.step():
        pass
    assert faults(monitor) == expected
    assert records(monitor)


def test_log_outside_a_step_and_from_another_thread(monitor: Monitor) -> None:
    step = monitor.step()
    step.log(loss=1.0)
    thread = threading.Thread(target=lambda: step.log(loss=2.0))
    thread.start()
    thread.join()
    assert faults(monitor) == {"log_outside_step": 1, "other_thread": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_flag_and_no_number(monitor: Monitor, value: float) -> None:
    with monitor.step() as s:
        s.log(loss=value)
    [record] = records(monitor)
    assert record.flags & layout.FLAG_LOSS
    assert math.isnan(record.loss)


def test_a_forked_worker_leaves_its_parents_ring_alone() -> None:
    from gpuvigil import monitor

    with monitor.step():
        pass
    ring, before = monitor._ring, monitor._ring.written
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with monitor.step():
                pass
            status = 0 if monitor._ring is not ring and ring.written == before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ring_read.live(ring._map).written == before


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "run7", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8",
          "TORCHELASTIC_RESTART_COUNT": "2"},
         {"job": "run7", "rank": 3, "local_rank": 1, "world_size": 8, "restart": 2, "launcher": "torchrun"}),
        ({"SLURM_JOB_ID": "42", "SLURM_PROCID": "5", "SLURM_NTASKS": "16"},
         {"job": "42", "rank": 5, "world_size": 16, "launcher": "slurm"}),
        ({"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}, {"job": "40_3"}),
        ({"GPUVIGIL_JOB": "my job/1\n", "SLURM_JOB_ID": "42"}, {"job": "my-job-1"}),
        ({"RANK": "-1", "WORLD_SIZE": "many"}, {"rank": 0, "world_size": 1}),
        ({"JOB_NAME": "llm", "JOB_COMPLETION_INDEX": "2", "KUBERNETES_SERVICE_HOST": "x"},
         {"job": "llm", "rank": 2, "launcher": "kubernetes"}),
        ({"GPUVIGIL_JOB": "j", "CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b", "LOCAL_RANK": "1"}, {"gpu": "GPU-b"}),
        ({"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0"}, {"launcher": "torchrun"}),
    ],
)  # fmt: skip
def test_identity_from_what_launchers_say(environ, expected) -> None:
    found = identity(environ)
    assert {key: found.get(key) for key in expected} == expected
    assert found["job"] not in ("", "none")
