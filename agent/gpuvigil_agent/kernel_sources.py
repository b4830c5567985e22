"""Where kernel records come from: the journal (for a unit without capabilities) or /dev/kmsg.

Both carry the record's facility, which the kernel sets: what user space writes into /dev/kmsg has facility 1
or above, and what it logs through syslog has another transport. Syslog files carry neither and are not read.
Sources: journalctl(1) `-o json`, systemd.journal-fields(7); kernel documentation ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gpuvigil_agent.kernel_place import BACK_NS, Place

KMSG: Final = "/dev/kmsg"
_JOURNALD_SOCKET: Final = Path("/run/systemd/journal/stdout")
_RECORD_BYTES: Final = 16384  # the kernel's own limit is 8 KiB with its dictionary
_LINE_MAX_BYTES: Final = 1 << 16
_CHUNK_BYTES: Final = 1 << 16
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 1.0, 60.0
_END_S: Final = 2.0
_QUICK_S: Final = 5.0
_HEALTHY_S: Final = 60.0  # a journalctl that lived this long starts its backoff anew
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")
_FIELDS: Final = "MESSAGE,PRIORITY,SYSLOG_FACILITY,_TRANSPORT"
_JOURNALCTL: Final = ("journalctl", "-k", "-q", "--no-pager", "-o", "json", f"--output-fields={_FIELDS}")
JOURNAL_COMMAND: Final = (*_JOURNALCTL, "-f")

Counters = dict[str, int]
OnState = Callable[[str], None]


class KernelRecord(NamedTuple):
    """One record as the kernel wrote it; text may hold line breaks and any character."""

    facility: int
    priority: int
    sequence: int
    time_ns: int
    text: str


class _JournalEntry(msgspec.Struct):
    """The fields of one JSON line. MESSAGE is a list of bytes where it is not UTF-8, null where too long."""

    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)
    priority: str = msgspec.field(name="PRIORITY", default="6")
    facility: str = msgspec.field(name="SYSLOG_FACILITY", default="")
    transport: str = msgspec.field(name="_TRANSPORT", default="")
    cursor: str = msgspec.field(name="__CURSOR", default="")
    realtime_us: str = msgspec.field(name="__REALTIME_TIMESTAMP", default="0")


_decode_entry = msgspec.json.Decoder(_JournalEntry).decode


def history_command(lines_max: int) -> tuple[str, ...]:
    """Return the command that prints the kernel's records of this boot's last 24 h and ends."""
    return (*_JOURNALCTL, "--since=-24h", f"--lines={lines_max}")


def count(counters: Counters, key: str, number: int = 1) -> None:
    """Add to a counter."""
    counters[key] = counters.get(key, 0) + number


def parse_kmsg(data: bytes, boot_ns: int) -> KernelRecord | None:
    """Read one record of /dev/kmsg; `boot_ns` is the wall time of the kernel clock's zero.

    None: malformed.
    """
    header, separator, body = data.partition(b";")
    words = header.split(b",")
    if not separator or len(words) < 3 or not all(word.isdigit() for word in words[:3]):
        return None
    prefix, sequence, microseconds = (int(word) for word in words[:3])
    message = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), body.split(b"\n", 1)[0])
    text = message.decode("utf-8", "replace")
    return KernelRecord(prefix >> 3, prefix & 7, sequence, boot_ns + microseconds * 1000, text)


def parse_journal(line: bytes, sequence: int) -> tuple[KernelRecord, str] | None:
    """Read one JSON line: the record and its cursor. None when it is malformed or not the kernel's own.

    A line without a facility is refused too: absent is not zero.
    """
    try:
        entry = _decode_entry(line)
        message = (
            bytes(entry.message).decode("utf-8", "replace")
            if isinstance(entry.message, list)
            else entry.message
        )
        if message is None or entry.transport != "kernel":
            return None
        time_ns = int(entry.realtime_us) * 1000
        return KernelRecord(
            int(entry.facility), int(entry.priority), sequence, time_ns, message
        ), entry.cursor
    except (msgspec.DecodeError, ValueError):  # ValueError: not a number, or no byte
        return None


async def kmsg_source(
    counters: Counters, path: str = KMSG, place: Place | None = None
) -> AsyncIterator[KernelRecord]:
    """Yield records after `place`, at most 10 minutes old; without one, from now on. Raises OSError.

    Records that the ring lost before we read them are counted as `overruns`, by the sequence numbers.
    """
    place = place or Place()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    try:
        if place.known:
            for record in _missed(descriptor, counters, place):
                yield record
                place.pass_by(record.sequence, record.time_ns)
        else:
            os.lseek(descriptor, 0, os.SEEK_END)
        loop.add_reader(descriptor, ready.set)
        last = -1
        while True:
            await ready.wait()
            ready.clear()
            for record in read_kmsg(descriptor, counters):
                if last >= 0 and record.sequence > last + 1:
                    count(counters, "overruns", record.sequence - last - 1)
                last = record.sequence
                now_ns = time.time_ns()  # the kernel's log clock drifts over months
                yield record._replace(time_ns=now_ns)
                place.pass_by(record.sequence, now_ns)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _missed(descriptor: int, counters: Counters, place: Place) -> Iterator[KernelRecord]:
    """Yield what the ring holds from after `place`, under its own time."""
    after, oldest_ns = place.sequence, time.time_ns() - BACK_NS
    while found := read_kmsg(descriptor, counters):
        for record in found:
            if record.sequence <= after:
                continue
            if record.time_ns < oldest_ns:
                count(counters, "too_old")
                continue
            count(counters, "caught_up")
            yield record


def read_kmsg(descriptor: int, counters: Counters) -> list[KernelRecord]:
    """Return what can be read without waiting, at most 512 records. Raises OSError for a dead device."""
    boot_ns = time.time_ns() - time.monotonic_ns()
    records: list[KernelRecord] = []
    for _ in range(512):
        try:
            record = parse_kmsg(os.read(descriptor, _RECORD_BYTES), boot_ns)
        except BlockingIOError:
            break
        except BrokenPipeError:  # EPIPE: overtaken; the next read goes on with the oldest record left
            count(counters, "overrun_reads")
            continue
        if record is None:
            count(counters, "malformed")
            continue
        records.append(record)
    return records


async def journal_source(
    counters: Counters,
    on_state: OnState,
    command: tuple[str, ...] = JOURNAL_COMMAND,
    place: Place | None = None,
) -> AsyncIterator[KernelRecord]:
    """Yield records after `place`, for ever: a journalctl that ends is started again where it was.

    Without a place, from now on. Raises FileNotFoundError when there is no journalctl.
    """
    place = place or Place()
    sequence, backoff_s = 0, _BACKOFF_FIRST_S
    oldest_ns = time.time_ns() - BACK_NS if place.known else 0
    while True:
        started = time.monotonic()
        on_state("journal")
        where = place.journal_start(time.time_ns())
        async with contextlib.aclosing(_lines_of((*command, *where), counters)) as lines:
            async for line in lines:
                found = parse_journal(line, sequence + 1)
                if found is None:
                    count(counters, "malformed")
                    continue
                record, cursor = found
                sequence += 1
                if record.time_ns < oldest_ns:
                    count(counters, "too_old")
                    continue
                yield record
                place.pass_by(sequence, record.time_ns, cursor)
                place.known = True
        count(counters, "journal_restarts")
        lived_s = time.monotonic() - started
        if not sequence and lived_s < _QUICK_S:  # it may be the kept cursor that is wrong: time will do
            place.cursor = ""
        backoff_s = _BACKOFF_FIRST_S if lived_s > _HEALTHY_S else backoff_s
        on_state(f"journalctl ended; started again in {backoff_s:.0f} s")
        await asyncio.sleep(backoff_s)
        backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)


async def _lines_of(command: tuple[str, ...], counters: Counters) -> AsyncGenerator[bytes, None]:
    """Yield the output's lines until it ends; a line over 64 KiB is dropped and counted."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    rest, skipping = b"", False
    try:
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not skipping:
                    yield line
                skipping = False
            if len(rest) > _LINE_MAX_BYTES:
                count(counters, "too_long", int(not skipping))
                rest, skipping = b"", True
            await asyncio.sleep(0)  # a full pipe must not keep the loop from everything else
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill and reap. The pipe is emptied, for asyncio sees no end of a process whose full pipe it paused."""
    assert process.stdout is not None
    with contextlib.suppress(ProcessLookupError):  # ended by itself in this very moment
        process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            while await process.stdout.read(_CHUNK_BYTES):
                pass
            await process.wait()


def choose(
    mode: str, counters: Counters, on_state: OnState, place: Place | None = None
) -> AsyncIterator[KernelRecord] | None:
    """Return the source of config's host.kernel_log, None for `none` and where this machine has neither."""
    if mode in {"auto", "journal"} and shutil.which("journalctl") and _JOURNALD_SOCKET.exists():
        return journal_source(counters, on_state, place=place)
    if mode in {"auto", "kmsg"} and os.access(KMSG, os.R_OK):
        on_state("kmsg")
        return kmsg_source(counters, place=place)
    if mode == "none":
        on_state("off")
        return None
    count(counters, "absent")
    on_state(f"absent: {_why_absent(mode)}")
    return None


def _why_absent(mode: str) -> str:
    journal = "no journald with journalctl on this machine"
    kmsg = f"{KMSG} cannot be read"
    return {"journal": journal, "kmsg": kmsg}.get(mode, f"{journal}, and {kmsg}")
