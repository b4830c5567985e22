"""Tensors in `log`: read without `.item()` or `float()`, of any type; what is no number is counted."""

from __future__ import annotations

import math
import weakref

import pytest

from gpuvigil import ring_read
from gpuvigil.loop import Monitor

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs_torch


class Touchy(torch.Tensor):
    """A tensor that must not be asked for its value: that would wait for the device."""

    def item(self):
        raise AssertionError("item() waits for the device")

    def __float__(self):
        raise AssertionError("float() waits for the device")

    def tolist(self):
        raise AssertionError("tolist() waits for the device")

    def cpu(self):
        raise AssertionError("cpu() waits for the device")


@pytest.fixture
def monitor(monkeypatch) -> Monitor:
    monkeypatch.setenv("GPUVIGIL_SOCKET", "/nonexistent/hook.sock")
    return Monitor()


def logged(monitor: Monitor, value: object) -> ring_read.Record:
    with monitor.step() as s:
        s.log(loss=value)
    monitor._settle()  # what the hook's thread does at each beat
    return ring_read.records(monitor._ring._map, 0, monitor._ring.written)[0][-1]


def faults(monitor: Monitor) -> dict[str, int]:
    return {name: count for name, count in ring_read.faults(monitor._ring._map).items() if count}


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_host_tensor_of_one_element_is_read_from_its_memory(monitor: Monitor, dtype: str, shape) -> None:
    tensor = torch.full(shape, 3, dtype=getattr(torch, dtype)).as_subclass(Touchy)
    assert logged(monitor, tensor).loss == 3.0
    assert faults(monitor) == {}


def test_a_loss_that_needs_a_gradient_and_a_view_of_a_larger_tensor(monitor: Monitor) -> None:
    loss = (torch.ones(3, requires_grad=True) * 2).sum().as_subclass(Touchy)
    assert logged(monitor, loss).loss == 6.0
    assert logged(monitor, torch.arange(5.0)[3]).loss == 3.0
    loss.backward()


def test_a_tensor_that_is_changed_in_place_later_has_the_value_that_it_had(monitor: Monitor) -> None:
    total = torch.tensor(1.0)
    with monitor.step() as s:
        s.log(loss=total)
    total += 1
    monitor._settle()
    [record] = ring_read.records(monitor._ring._map, 0, 1)[0]
    assert record.loss == 1.0 and not record.flags & 32
    assert faults(monitor) == {}


def test_a_host_tensor_is_not_kept(monitor: Monitor) -> None:
    """What lives on because of us moves where the next step's memory lies: it made steps 16 % slower."""
    tensor = torch.tensor(1.0)
    gone = weakref.ref(tensor)
    with monitor.step() as s:
        s.log(loss=tensor)
        del tensor
        assert gone() is None


class Pinned(Touchy):
    """A host tensor to which a copy may be under way."""

    def is_pinned(self, *_: object) -> bool:
        return True


class Event:
    """The driver's word on a copy."""

    there = False

    def record(self, stream: object) -> None:
        assert stream == "the stream"

    def query(self) -> bool:
        return Event.there


def test_a_value_that_is_on_its_way_is_awaited_without_a_wait(monitor: Monitor, monkeypatch) -> None:
    for name, stub in (
        ("_initialized", True), ("Event", Event), ("current_stream", lambda _: "the stream"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stub)
    monitor._open()
    monitor._link._settle = lambda: None  # so that the thread does not do it first
    loss, norm = (torch.tensor(number).as_subclass(Pinned) for number in (2.0, 3.0))
    with monitor.step() as s:
        s.log(loss=loss, grad_norm=norm, tokens=torch.tensor(7))
    read = lambda: ring_read.records(monitor._ring._map, 0, 1)[0][0]  # noqa: E731
    monitor._settle()
    assert read().flags & 32 and math.isnan(read().loss) and read().tokens == 7.0
    norm.fill_(4.0)  # used again before it was read: that is a later step's
    monkeypatch.setattr(Event, "there", True)
    monitor._settle()
    assert (read().loss, read().flags & 32) == (2.0, 0) and math.isnan(read().gradient_norm)
    assert faults(monitor) == {"value_dropped": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_a_flag(monitor: Monitor, value: float) -> None:
    record = logged(monitor, torch.tensor(value))
    assert math.isnan(record.loss) and record.flags & 2


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), torch.empty(0), torch.tensor(1 + 2j), torch.tensor(True), torch.empty((), device="meta")],
)
def test_what_is_no_number_is_counted_and_never_raised(monitor: Monitor, value) -> None:
    assert math.isnan(logged(monitor, value).loss)
    assert sum(faults(monitor).values()) == 1
