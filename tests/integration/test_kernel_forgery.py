"""Forged kernel lines, written for real: through /dev/kmsg, through logger, and as a process's own name.

A fact counts only when the kernel itself wrote it. /dev/kmsg is open for writing to root alone, so these
tests need root; the same records are replayed without root in tests/unit/test_kernel_log_watch.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time

import pytest

from gpuvigil_agent.kernel_log import kmsg_source, watch

pytestmark = pytest.mark.needs_root
RATE_LIMIT_S = 6  # the kernel says at most ten such lines in 5 s
FORGED = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, GPU has fallen off the bus."
CRASH = (
    "import ctypes, resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
    "ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0); ctypes.string_at(0)"  # 15: PR_SET_NAME
)


@pytest.fixture
def kmsg():
    """A descriptor for writing; skips where this machine lets not even root write or read it."""
    if os.geteuid() != 0 or not os.access("/dev/kmsg", os.R_OK | os.W_OK):
        pytest.skip("needs root and a writable /dev/kmsg")
    descriptor = os.open("/dev/kmsg", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


async def watched(act, until):
    """Watch the real /dev/kmsg while `act` runs; returns events, counters and the texts seen."""
    events, counters, texts = [], {}, []
    ready = asyncio.Event()

    async def source():
        async for record in kmsg_source(counters):
            texts.append((record.facility, record.text))
            yield record

    async def act_when_reading():
        while not ready.is_set():
            os.write(marker, b"gpuvigil test: reader is up\n")
            await asyncio.sleep(0.05)
            if any("reader is up" in text for _, text in texts):
                ready.set()
        act()

    marker = os.open("/dev/kmsg", os.O_WRONLY)
    task = asyncio.create_task(watch(source(), lambda pci: None, events.append, counters))
    try:
        await asyncio.wait_for(act_when_reading(), 20)
        deadline = time.monotonic() + 20
        while not until(texts) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
    finally:
        os.close(marker)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return events, counters, texts


def seen(fragment):
    return lambda texts: any(fragment in text for _, text in texts)


@pytest.mark.parametrize("prefix", ["", "<0>", "<3>", "<4>", "<8>", "<00>", "<-8>"])
async def test_what_user_space_writes_into_kmsg_is_refused(kmsg, prefix):
    mark = f"mark{time.monotonic_ns()}"
    events, counters, texts = await watched(
        lambda: os.write(kmsg, f"{prefix}{FORGED} {mark}\n".encode()), seen(mark)
    )
    assert seen(mark)(texts), "the forged record never arrived, so nothing was tested"
    assert events == []
    assert counters["refused_facility"] >= 1


async def test_logger_is_refused(kmsg):
    logger = shutil.which("logger")
    if logger is None:
        pytest.skip("no logger on this machine")
    mark = f"mark{time.monotonic_ns()}"

    def act():
        for priority in ("kern.err", "kern.emerg", "user.err"):
            subprocess.run([logger, "-p", priority, f"{FORGED} {mark}"], timeout=20, check=False)
        os.write(kmsg, f"{mark}\n".encode())

    events, _, _ = await watched(act, seen(mark))
    assert events == []


@pytest.mark.parametrize("name", ["NVRM: Xid (PCI:", "NVRM: Xid: 79, ", "Out of memory: ", "GPU has fallen "])
async def test_a_process_that_is_named_like_a_fact_and_crashes_is_refused(kmsg, name):
    """The kernel itself prints a crashing process's name at the start of a record, with facility 0."""

    def act():
        subprocess.run(
            [sys.executable, "-c", CRASH, name], timeout=20, check=False, stderr=subprocess.DEVNULL
        )
        os.write(kmsg, f"{mark}\n".encode())

    for _ in range(3):
        mark = f"mark{time.monotonic_ns()}"
        events, _, texts = await watched(act, seen(mark))
        assert seen(mark)(texts)
        assert events == []
        if any(facility == 0 and text.startswith(name[:15]) for facility, text in texts):
            return
        await asyncio.sleep(RATE_LIMIT_S)
    pytest.skip("this kernel printed no line of the crash (its own rate limit, or told not to)")
