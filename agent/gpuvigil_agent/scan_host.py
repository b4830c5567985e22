"""What a scan asks of the host: readings, kernel reports of the last day, GPUs on the PCI bus, the clock.

Every question has a deadline; what does not answer is named as not checked, never taken as healthy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from gpuvigil_agent.config import Host
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.kernel_grammar import Grammar
from gpuvigil_agent.kernel_log import GpuByPci, event_of
from gpuvigil_agent.kernel_sources import KMSG, KernelRecord, history_command, parse_journal, read_kmsg
from gpuvigil_agent.samplers.base import SourceAbsentError
from gpuvigil_agent.samplers.host_table import build_host_samplers
from gpuvigil_agent.scan_checks import Facts

_BETWEEN_READINGS_S: Final = 1.0
_HOST_S: Final = 4.0
_COMMAND_S: Final = 4.0
_OUTPUT_MAX_BYTES: Final = 64 << 20
_RECORDS_MAX: Final = 50_000
_NVIDIA_VENDOR: Final = "0x10de"
_GPU_CLASSES: Final = ("0x0300", "0x0302")  # VGA and 3D controllers


async def read_host(files: HostFiles, host: Host, facts: Facts) -> None:
    """Read every host sampler twice, a second apart, as the shares and latencies are of the time between."""
    answered: dict[str, bool] = {}

    def read() -> None:
        samplers = build_host_samplers(files, host)
        for wait_s in (_BETWEEN_READINGS_S, 0.0):
            for sampler in samplers:
                try:
                    for sample in sampler.sample():
                        facts.readings[sample.metric.name, sample.entity] = sample.value
                        answered[sampler.name] = True
                except SourceAbsentError as error:
                    answered[sampler.name] = False
                    if not wait_s:
                        facts.unchecked.append((sampler.name, str(error)))
            time.sleep(wait_s)

    finished = await in_thread(read, _HOST_S)
    facts.checked += [name for name, good in list(answered.items()) if good]
    if finished is None:
        facts.unchecked.append(("host", f"a file of the host did not answer within {_HOST_S:g} s"))


async def in_thread(function: Callable[[], None], deadline_s: float) -> bool | None:
    """Run a function that may hang in a daemon thread; True when it ended, None when it still runs."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def run() -> None:
        try:
            function()
        finally:
            with contextlib.suppress(RuntimeError):  # the scan gave up and its loop is closed
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, daemon=True, name="scan-host").start()
    try:
        await asyncio.wait_for(done.wait(), deadline_s)
    except TimeoutError:
        return None
    return True


async def read_kernel_log(facts: Facts) -> None:
    """Collect the kernel's records of this boot's last 24 h: the journal, else /dev/kmsg."""
    records, why = await _journal_history(), ""
    if records is None:
        records, why = _kmsg_history()
    if records is None:
        facts.unchecked.append(("kernel_log", why))
        return
    facts.checked.append("kernel_log")
    facts.kernel_records = records


def kernel_events(records: list[KernelRecord], gpu_by_pci: GpuByPci) -> list[AgentEvent]:
    """Return what the records of the last 24 h say."""
    grammar, counters = Grammar(), dict[str, int]()
    oldest_ns = time.time_ns() - 86400 * 10**9
    events = [event_of(record, grammar, gpu_by_pci, counters) for record in records]
    return [event for event in events if event is not None and event.time_ns >= oldest_ns]


async def _journal_history() -> list[KernelRecord] | None:
    output = await command_output(history_command(_RECORDS_MAX))
    if not output:
        return None  # no journal, no right to read it, or no line: the ring buffer decides
    found = [parse_journal(line, number) for number, line in enumerate(output.split(b"\n"))]
    return [record for record, _ in filter(None, found)]


def _kmsg_history() -> tuple[list[KernelRecord] | None, str]:
    try:
        descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return (
            None,
            f"no journal to read, and {KMSG}: {error.strerror}; try as root or in group systemd-journal",
        )
    records: list[KernelRecord] = []
    try:
        while len(records) < _RECORDS_MAX and (more := read_kmsg(descriptor, {})):
            records += more
    except OSError as error:
        return None, f"{KMSG}: {error.strerror}"
    finally:
        os.close(descriptor)
    return records, ""


async def read_time_sync(facts: Facts) -> None:
    """Ask systemd whether the clock is synchronised; a machine without an answer is not judged."""
    output = await command_output(("timedatectl", "show", "--property=NTPSynchronized", "--value"))
    word = (output or b"").strip()
    if word not in {b"yes", b"no"}:
        facts.unchecked.append(("time", "timedatectl gives no answer here"))
        return
    facts.checked.append("time")
    if word == b"no":
        facts.facts.append(("time_not_synchronised", "node", "timedatectl says NTPSynchronized=no"))


async def command_output(command: tuple[str, ...]) -> bytes | None:
    """Return what a command prints, None when it is missing, fails, or needs longer than 4 s."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    assert process.stdout is not None
    parts, size = [], 0
    try:
        async with asyncio.timeout(_COMMAND_S):
            while size < _OUTPUT_MAX_BYTES and (part := await process.stdout.read(1 << 20)):
                parts.append(part)
                size += len(part)
            code = 0 if size >= _OUTPUT_MAX_BYTES else await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
    return b"".join(parts) if code == 0 else None


def gpus_on_pci(files: HostFiles) -> int | None:
    """Count NVIDIA GPUs on the PCI bus, driver or not. None where the machine does not say.

    Source: /sys/bus/pci/devices/*/{vendor,class}.
    """
    root = "/sys/bus/pci/devices"
    try:
        names = files.names(root)
    except OSError:
        return None
    found = 0
    for name in names:
        with contextlib.suppress(OSError):
            if files.read(f"{root}/{name}/vendor").strip() == _NVIDIA_VENDOR:
                found += files.read(f"{root}/{name}/class").startswith(_GPU_CLASSES)
    return found
