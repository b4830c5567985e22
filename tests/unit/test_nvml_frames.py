"""Frames between agent and driver process: any cut of the stream gives the same frames, junk is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.config import Simulate

DOWN = [
    frames.Begin(simulated=True, node="n1", simulate=Simulate(), calls_per_second_max=10),
    frames.Tick(1, 2, [3]),
    frames.Stop(),
]
UP = [
    frames.Inventory("570.1", [frames.GpuInfo(uuid="GPU-1", index=0, model="H", pci_bus_id="p")], True),
    frames.Answer(
        1, {"gpu:GPU-1": {"gpu_power_watts": 1.5}}, [frames.Stuck("node", -1, "x", 2.0)], {"calls": 1}
    ),
    frames.Happened(1, "xid", "GPU-1", code=79),
    frames.Ended("no driver"),
]


@given(st.lists(st.integers(1, 40), max_size=60))
def test_any_cut_gives_the_same_frames(cuts: list[int]) -> None:
    stream = b"".join(frames.encode(frame) for frame in UP)
    buffer, bodies = frames.FrameBuffer(), []
    for size in [*cuts, len(stream)]:
        bodies += buffer.feed(stream[:size])
        stream = stream[size:]
    assert [frames.decode_up(body) for body in bodies] == UP


def test_frames_down_come_back_equal() -> None:
    [*bodies] = frames.FrameBuffer().feed(b"".join(frames.encode(frame) for frame in DOWN))
    assert [frames.decode_down(body) for body in bodies] == DOWN


def test_a_frame_over_the_bound_is_refused() -> None:
    with pytest.raises(frames.BadFrameError, match="at most"):
        frames.FrameBuffer().feed((frames.FRAME_BYTES_MAX + 1).to_bytes(4, "little"))


@given(st.binary(max_size=64))
def test_junk_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(frames.BadFrameError):
        frames.decode_up(b"\xc1" + body)
