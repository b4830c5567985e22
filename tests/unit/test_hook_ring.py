"""The ring between hook and agent: what is written comes back, torn or hostile bytes never get further."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuvigil import layout, ring_read
from gpuvigil.ring import Control, Ring
from gpuvigil.ring_read import LayoutError

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [0.5, *[0.01] * 8, 128.0, 2.5, math.nan, 1e9]


def mapped(ring: Ring) -> mmap.mmap:
    return mmap.mmap(ring.fd, layout.SIZE, prot=mmap.PROT_READ)


def test_what_is_written_comes_back_and_the_oldest_are_said_to_be_gone() -> None:
    ring = Ring()
    ring.identify({"job": "j", "rank": 3})
    for step in range(layout.CAPACITY + 100):
        ring.record(step, 8, 1, 2, NUMBERS)
    ring.live(3, 6)
    seen = mapped(ring)
    assert ring_read.header(seen).generation == ring.generation
    assert ring_read.identity(seen) == {"job": "j", "rank": 3}
    assert ring_read.live(seen) == (layout.CAPACITY + 100, layout.CAPACITY + 99, 8, 3, 6)
    found, lost = ring_read.records(seen, 0, ring.written)
    assert [record.step for record in found] == list(range(101, layout.CAPACITY + 100))
    assert lost == 101
    assert found[-1].phases == (0.01,) * 8
    assert (found[-1].tokens, found[-1].loss, found[-1].allocated) == (128.0, 2.5, 1e9)
    assert math.isnan(found[-1].gradient_norm)


def test_a_value_that_came_late_is_set_in_its_own_record_alone() -> None:
    ring = Ring()
    first = ring.record(1, 8, 0, 1, NUMBERS)
    ring.record(2, 8, 0, 1, NUMBERS)
    ring.amend(first, 11, 0.75, layout.FLAG_GRADIENT, layout.FLAG_PENDING)
    found, _ = ring_read.records(mapped(ring), 0, 2)
    assert (found[0].gradient_norm, found[0].flags) == (0.75, layout.FLAG_GRADIENT)
    assert math.isnan(found[1].gradient_norm)
    for _ in range(layout.CAPACITY):
        ring.record(3, 8, 0, 1, NUMBERS)
    ring.amend(first, 11, 0.5, 0, 0)
    assert {record.step for record in ring_read.records(mapped(ring), 0, ring.written)[0]} == {3}


def test_the_file_cannot_be_cut_under_its_reader() -> None:
    ring = Ring()
    assert fcntl.fcntl(ring.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(OSError):
        os.ftruncate(ring.fd, 10)


@settings(max_examples=300)
@given(st.binary(min_size=0, max_size=400), st.integers(0, layout.SIZE - 1), st.integers(0, 1 << 64))
def test_hostile_bytes_give_values_or_a_named_error(noise: bytes, at: int, written: int) -> None:
    ring = Ring()
    for step in range(5):
        ring.record(step, 8, 0, 1, NUMBERS)
    bytes_ = bytearray(mapped(ring))
    bytes_[at : at + len(noise)] = noise
    data = bytes(bytes_[: layout.SIZE])
    for read in (ring_read.header, ring_read.identity, ring_read.live):
        try:
            read(data)
        except LayoutError as error:
            assert ":" in str(error)
    ring_read.faults(data)
    ring_read.heartbeat(data)
    found, _ = ring_read.records(data, 0, min(written, 1 << 53))
    assert len(found) <= layout.CAPACITY
    assert all(math.isfinite(record.seconds) and record.seconds >= 0 for record in found)
    ring.close()


def test_a_reader_beside_a_writer_never_sees_half_a_record() -> None:
    ring, stop = Ring(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            ring.record(number, number, 0, 1, [float(number)] * 13)
            ring.live(number % 8, number)

    writer = threading.Thread(target=write)
    writer.start()
    seen, checked, deadline = mapped(ring), 0, time.monotonic() + 1.5
    while time.monotonic() < deadline:
        found, _ = ring_read.records(seen, max(0, ring.written - 50), ring.written)
        for record in found:
            assert record.step == record.seconds == record.tokens == record.number + 1
        checked += len(found)
        try:
            live = ring_read.live(seen)
        except LayoutError:  # the writer does nothing else: busy each time is honest
            continue
        assert live.phase_since_ns % 8 == live.phase
        assert live.step == live.last_end_ns or live.step == -1
    stop.set()
    writer.join()
    assert checked > 1000


def test_the_ring_outlives_its_process() -> None:
    code = (
        "import os, sys; from gpuvigil.ring import Ring; r = Ring(); r.identify({'job': 'j'});"
        "[r.record(n, 2, 0, 1, [0.1] * 13) for n in range(9)]; r.live(2, 3);"
        "os.write(1, b'%d' % r.fd); os.read(0, 1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT / "agent")},
    )  # fmt: skip
    fd = os.open(f"/proc/{process.pid}/fd/{int(os.read(process.stdout.fileno(), 20))}", os.O_RDONLY)
    seen = mmap.mmap(fd, layout.SIZE, prot=mmap.PROT_READ)
    process.kill()
    process.wait(10)
    assert ring_read.live(seen).step == 8
    assert len(ring_read.records(seen, 0, 9)[0]) == 9


def test_a_request_is_read_from_the_page_the_agent_writes() -> None:
    control = Control()
    other = mmap.mmap(control.fd, layout.CONTROL_SIZE)
    assert (control.request, control.request_id) == (0, "")
    layout.CONTROL_BODY.pack_into(other, layout.CONTROL_BODY_AT, 77, b"a1b2c3")
    other[layout.CONTROL_REQUEST_AT : layout.CONTROL_REQUEST_AT + 8] = (5).to_bytes(8, "little")
    assert (control.request, control.request_id) == (5, "a1b2c3")
    control.close()
