"""Back-off: a GPU whose driver has become slow is asked less, and only that one, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.driver_backoff import HOLD_NS, Backoff
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_slot import Slot
from gpuvigil_agent.driver_worker import Outbox
from gpuvigil_agent.samplers.base import Sample

SECOND_NS = 1_000_000_000


def fed(seconds: list[float]) -> Backoff:
    """Give a reading a second."""
    backoff = Backoff()
    for number, value in enumerate(seconds):
        backoff.note(value, number * SECOND_NS)
    return backoff


def test_five_times_its_own_median_for_ten_seconds_and_no_sooner() -> None:
    usual = [0.01] * 120
    assert not fed([*usual, *[0.06] * 10]).active
    assert fed([*usual, *[0.06] * 11]).active
    assert not fed([*usual, *[0.049] * 60]).active
    assert not fed([*usual, *[0.06] * 11, 0.01]).active, "it ends with the slowness"


def test_slow_now_and_then_is_no_slowness() -> None:
    assert not fed([0.01] * 120 + [0.5, 0.5, 0.01] * 20).active


def test_microseconds_are_never_slow_and_a_lasting_change_becomes_normal() -> None:
    assert not fed([0.00001] * 120 + [0.004] * 60).active
    assert fed([0.01] * 120 + [0.06] * 60).active
    assert not fed([0.01] * 120 + [0.06] * 1200).active


@given(st.lists(st.floats(0, 1), max_size=200))
def test_it_never_holds_without_ten_seconds_over_the_floor(seconds: list[float]) -> None:
    if fed(seconds).active:
        assert min(seconds[-HOLD_NS // SECOND_NS :]) > 0.005


class Reads:
    """A sampler that counts its readings; the fast one takes driver time."""

    def __init__(self, name: str, period_s: float, device: Any = None) -> None:
        self.name, self.period_s, self.reads, self._device = name, period_s, 0, device
        self.takes_s = 0.0

    def sample(self) -> Iterator[Sample]:
        self.reads += 1
        if self._device is not None:
            self._device.calls.seconds += self.takes_s
        return iter(())


def play(slot: Slot, first: int, seconds: int) -> None:
    for second in range(first, first + seconds):
        slot.read(slot.begin(second), second * SECOND_NS)


def test_slow_samplers_are_read_half_as_often_while_the_fast_one_goes_on_and_all_is_counted() -> None:
    slot = Slot(0, Budget(1000), Outbox())
    device: Any = SimpleNamespace(uuid="GPU-1", calls=SimpleNamespace(seconds=0.0))
    fast, slow = Reads("fast", 1.0, device), Reads("slow", 10.0)
    slot.device, slot._samplers = device, (fast, slow)
    fast.takes_s = 0.01
    play(slot, 0, 120)
    assert (fast.reads, slow.reads, slot.counters["backed_off"]) == (120, 12, 0)
    fast.takes_s = 0.2
    play(slot, 120, 20)  # the first ten seconds are not slow yet
    before = slow.reads
    play(slot, 140, 80)
    assert slow.reads - before == 4
    assert slot.counters["backed_off"] in {4, 5}
    fast.takes_s, before = 0.01, slow.reads
    play(slot, 220, 40)
    assert slow.reads - before == 4
    assert fast.reads == 260
