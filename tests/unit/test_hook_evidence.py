"""Who is signalled and who is not, and what of others' text comes out: real processes, hostile bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration.stack import environment

from gpuvigil import layout
from gpuvigil.ring import Control, Ring, anonymous_file
from gpuvigil_agent import hook_evidence, hook_peer
from gpuvigil_agent.hook_rank import Rank

HANDLES = "import faulthandler, os, time; faulthandler.register({n}, file={fd}, all_threads=True); "
SLEEPS = "print('up', flush=True); time.sleep(100)"
NUMBER = int(signal.SIGRTMIN) + 12
THREADS = b"""Thread 0x00007f0290c42b80 (most recent call first):
  File "/usr/lib/threading.py", line 320 in wait

Current thread 0x00007f0290c42b81 [python] (most recent call first):
  File "/home/u/re.py", line 166 in match
  File "/home/u/train.py", line 41 in load_batch
  File "<string>", line 1 in <module>
"""


@contextlib.contextmanager
def rank_of(
    process: subprocess.Popen, fd: int, number: int = NUMBER, uid: int | None = None
) -> Iterator[Rank]:
    """A registered rank of this process whose hook's thread has not run for 10 s."""
    ring, control = Ring(), Control()
    ring.stack_signal(number)
    layout.WORD.pack_into(ring._map, layout.HEARTBEAT_AT, time.monotonic_ns() - 10 * 10**9)
    peer = hook_peer.Peer(process.pid, os.getuid() if uid is None else uid, "")
    made = Rank(peer, hook_peer.Identity(job="j"), ring.generation, hook_peer.map_ring(ring.fd),
                hook_peer.map_control(control.fd), os.pidfd_open(process.pid), os.dup(fd))  # fmt: skip
    try:
        yield made
    finally:
        if not made.closed:
            made.close()
        ring.close()
        control.close()


@contextlib.contextmanager
def child(code: str, fd: int) -> Iterator[subprocess.Popen]:
    text = code.format(n=NUMBER, fd=fd)
    process = subprocess.Popen([sys.executable, "-c", text], env=environment(), pass_fds=[fd],
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture
def fd() -> Iterator[int]:
    made = anonymous_file("stacks", layout.STACKS_SIZE)
    yield made
    os.close(made)


async def gathered(rank: Rank, within_s: float = 10) -> list:
    told: list = []
    assert (
        hook_evidence.gather([rank], 5, told.append)
        == "asked 0 ranks for their records, 1 for stacks by signal"
    )
    deadline = time.monotonic() + within_s
    while not told and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return told


async def test_a_process_writes_its_stack_each_time_anew(fd: int) -> None:
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd) as rank:
        for _ in range(2):
            [event] = await gathered(rank)
            assert event.fields["stack"] == "<string>:1 <module>" and event.fields["source"] == "signal"
            assert (event.kind, event.entity, event.fields["state"] in "SR") == (
                "collectives",
                "rank:j/0",
                True,
            )
        assert os.pread(fd, 10_000, 0).count(b"Current thread") == 1
        assert process.poll() is None


async def test_one_that_handles_no_signal_is_left_alive(fd: int) -> None:
    with child("import time; " + SLEEPS, fd) as process, rank_of(process, fd) as rank:
        [event] = await gathered(rank)
        assert event.fields["note"] == f"it handles signal {NUMBER} no more"
        await asyncio.sleep(0.2)
        assert process.poll() is None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_an_agent_that_may_not_signal_says_so(fd: int) -> None:
    """As under the shipped unit: another user's process, and no capability."""
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd) as rank:
        here, there = os.pipe()
        agent = os.fork()
        if not agent:
            with contextlib.suppress(BaseException):
                os.setgroups([])
                os.setuid(65534)
                told: list = []
                hook_evidence.gather([rank], 5, told.append)
                os.write(there, told[0].fields["note"].encode())
            os._exit(0)
        os.close(there)
        os.waitpid(agent, 0)
        assert os.read(here, 500) == b"the agent may not signal it: Operation not permitted"
        os.close(here)
        assert not os.pread(fd, 1, 0).strip(b"\0")


@pytest.mark.parametrize(("number", "note"), [
    (0, "it offers no signal"), (signal.SIGKILL, "handles signal 9 no more"), (999, "it offers no signal"),
])  # fmt: skip
async def test_a_ring_cannot_have_us_send_another_signal(fd: int, number: int, note: str) -> None:
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd, number) as rank:
        [event] = await gathered(rank)
        assert note in event.fields["note"]
        await asyncio.sleep(0.2)
        assert process.poll() is None


async def test_one_that_became_another_users_is_not_signalled(fd: int) -> None:
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd, uid=os.getuid() + 1) as rank:
        [event] = await gathered(rank)
        assert event.fields["note"] == "it has changed its user" and not os.pread(fd, 1, 0).strip(b"\0")


async def test_a_stopped_one_and_an_ended_one_are_said_to_be(fd: int) -> None:
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd) as rank:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.2)
        [event] = await gathered(rank)
        assert (event.fields["state"], event.fields["note"]) == ("T", "stopped by a signal, or by a debugger")
        process.kill()
        process.wait(10)
        [event] = await gathered(rank)
        assert event.fields["note"] == "its state cannot be read"


async def test_one_that_writes_nothing_is_said_to_and_one_that_goes_meanwhile_harms_nothing(fd: int) -> None:
    silent = "import signal, time; signal.signal({n}, lambda *a: None); " + SLEEPS
    with child(silent, fd) as process, rank_of(process, fd) as rank:
        [event] = await gathered(rank)
        assert "no stack within 3 s" in event.fields["note"]
        told: list = []
        hook_evidence.gather([rank], 6, told.append)
        number, other = rank.stacks, anonymous_file("another's", layout.STACKS_SIZE)
        rank.close()
        os.dup2(other, number)  # its descriptor's number is soon another file's
        os.pwrite(number, THREADS, 0)
        await asyncio.sleep(0.6)
        os.close(other)
        os.close(number)
        assert told == []


async def test_a_rank_whose_hook_runs_is_asked_by_its_page(fd: int) -> None:
    with child(HANDLES + SLEEPS, fd) as process, rank_of(process, fd) as rank:
        ring = Ring()
        ring.beat()
        rank.ring.close()
        rank.ring = hook_peer.map_ring(ring.fd)
        for number, seen in ((7, 7), (5, 7), (8, 8)):
            hook_evidence.gather([rank], number, lambda _: pytest.fail("nothing to tell yet"))
            word = rank.control[layout.CONTROL_EVIDENCE_AT : layout.CONTROL_EVIDENCE_AT + 8]
            assert int.from_bytes(word, "little") == seen
        ring.close()
    with pytest.raises(hook_peer.Refused, match="no rank"):
        hook_evidence.gather([], 1, lambda _: None)


def test_the_main_threads_frames_come_out_innermost_first():
    assert hook_evidence.stacks_of(THREADS + bytes(100)) == (
        ["re.py:166 match", "train.py:41 load_batch", "<string>:1 <module>"], 2,
    )  # fmt: skip
    late = THREADS.replace(b"Current thread", b"Thread")
    assert hook_evidence.stacks_of(late)[0][0] == "re.py:166 match", "the oldest is the last"
    assert hook_evidence.stacks_of(b"") == ([], 0)


@given(st.binary(max_size=3000), st.booleans())
def test_hostile_text_is_bounded_and_clean(raw: bytes, framed: bool) -> None:
    body = b'Thread 0x1 x\n  File "' + raw.replace(b"\0", b"?") + b'", line 1 in \x1b[2J\n' if framed else raw
    frames, threads = hook_evidence.stacks_of(body * 3)
    assert len(frames) <= 8 and all(len(f) <= 80 and f.isprintable() for f in frames) and threads <= 1000
