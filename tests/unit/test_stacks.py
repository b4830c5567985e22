"""A signal that nobody uses has a process write its stacks, under a held interpreter lock too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.stack import environment

from gpuvigil import layout, stacks
from gpuvigil_agent.hook_evidence import stacks_of


@pytest.fixture
def taken():
    """Give back every signal that a test took, this one or one before it in this process."""
    for number in stacks._owners:
        stacks.faulthandler.unregister(number)
    stacks._owners.clear()
    made: list[stacks.Stacks] = []

    def make() -> stacks.Stacks:
        made.append(stacks.Stacks())
        return made[-1]

    yield make
    for one in made:
        if one._signal:
            stacks.faulthandler.unregister(one._signal)
        if one.fd >= 0:
            os.close(one.fd)
    stacks._owners.clear()


def written(one: stacks.Stacks) -> str:
    return os.pread(one.fd, layout.STACKS_SIZE, 0).rstrip(b"\0").decode()


def test_a_free_signal_is_taken_and_writes_all_threads(taken):
    one = taken()
    assert signal.SIGRTMIN + 12 <= one.current() <= signal.SIGRTMIN + 19
    os.kill(os.getpid(), one.current())
    frames, threads = stacks_of(written(one).encode())
    assert threads >= 1 and any("test_a_free_signal_is_taken" in frame for frame in frames)


def test_what_the_user_has_is_never_taken(taken, monkeypatch):
    first = int(signal.SIGRTMIN + 12)
    monkeypatch.setenv("GPUVIGIL_STACK_SIGNAL", "SIGUSR2")
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    ignored = signal.signal(first, signal.SIG_IGN)
    try:
        assert taken().current() == 0, "one that was asked for by name, too"
        monkeypatch.delenv("GPUVIGIL_STACK_SIGNAL")
        assert taken().current() > first, "an ignored one is somebody's wish"
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(first, ignored)


def test_one_that_another_thread_waits_for_is_left_alone(taken):
    first = int(signal.SIGRTMIN + 12)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [first])
    try:
        assert taken().current() != first
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_signal_that_the_user_takes_later_is_given_up(taken):
    one = taken()
    number = one.current()
    before = signal.signal(number, lambda *_: None)
    try:
        assert one.current() == 0
    finally:
        signal.signal(number, before)
    assert one.current() == 0, "for good"
    other = taken()
    assert other.current() not in (0, number), "which faulthandler takes for its own still"


@pytest.mark.parametrize(
    "text", ["off", "0", "-1", "65", "9", "KILL", "SIGKILL", "SIGNOTHING", "SIG_DFL", "½"]
)
def test_no_signal_for_off_and_for_what_is_none(taken, monkeypatch, text):
    monkeypatch.setenv("GPUVIGIL_STACK_SIGNAL", text)
    one = taken()
    assert (one.current(), one.fd) in {(0, -1), (0, one.fd)}


def test_one_by_number_or_name(taken, monkeypatch):
    monkeypatch.setenv("GPUVIGIL_STACK_SIGNAL", "SIGXCPU")
    assert taken().current() == signal.SIGXCPU
    monkeypatch.setenv("GPUVIGIL_STACK_SIGNAL", "55")
    assert taken().current() == 55


FORKS = """
import os, sys
from gpuvigil import stacks
one = stacks.Stacks()
child = os.fork()
if not child:
    two = stacks.Stacks()
    os.kill(os.getpid(), two.current())
    mine, parents = (os.pread(fd, 60, 0)[:14] for fd in (two.fd, one.fd))
    ok = two.current() == one.current() and mine == b"Current thread" and parents == bytes(14)
    os._exit(0 if ok else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_writes_into_a_file_of_its_own():
    assert subprocess.run([sys.executable, "-c", FORKS], env=environment(), timeout=60).returncode == 0


HOLDS = """
import ctypes
from gpuvigil import stacks
one = stacks.Stacks()
print(one.fd, one.current(), flush=True)
def hold():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
hold()
"""


def test_a_held_interpreter_lock_hides_nothing():
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], env=environment(), stdout=subprocess.PIPE
    ) as process:
        try:
            fd, number = (int(word) for word in process.stdout.readline().split())
            time.sleep(0.3)
            with Path(f"/proc/{process.pid}/fd/{fd}").open("rb", buffering=0) as file:
                process.send_signal(number)
                deadline = time.monotonic() + 10
                while not (frames := stacks_of(os.pread(file.fileno(), 4096, 0))[0]):
                    assert time.monotonic() < deadline, "no stack came"
                    time.sleep(0.02)
            assert frames[0].endswith(" hold") and process.poll() is None
        finally:
            process.kill()


def test_a_file_that_is_full_stops_the_writing_and_nothing_else(taken):
    one = taken()
    os.lseek(one.fd, layout.STACKS_SIZE - 10, os.SEEK_SET)
    os.kill(os.getpid(), one.current())
    assert os.fstat(one.fd).st_size == layout.STACKS_SIZE
