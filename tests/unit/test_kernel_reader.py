"""The kernel log's reader over restarts, dead sources and sources that are not there yet."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gpuvigil_agent import kernel_log, kernel_reader
from gpuvigil_agent.config import AgentConfig, Host
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_log import KernelRecord, kmsg_source
from gpuvigil_agent.kernel_place import BACK_NS, Place, PlaceFile
from gpuvigil_agent.kernel_reader import KernelReader
from gpuvigil_agent.kernel_sources import journal_source

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name=python, GPU has fallen off the bus."
Choose = Callable[..., AsyncIterator[KernelRecord] | None]


def record(text: str = XID) -> KernelRecord:
    return KernelRecord(0, 4, 1, time.time_ns(), text)


async def until(ask: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not ask():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[KernelReader, list[AgentEvent], Choose]:
    """A reader of this machine's log that tries again soon; the third is to be replaced in each test."""
    monkeypatch.setattr(kernel_reader, "AGAIN_S", 0.05)
    events: list[AgentEvent] = []
    config = AgentConfig(state_directory=str(tmp_path))
    return KernelReader(config, "n1", lambda _pci: None, events.append), events, kernel_log.choose


async def test_a_source_that_fails_is_down_and_started_again(reader, monkeypatch) -> None:
    made, events, _ = reader
    sources, broken = 0, asyncio.Event()

    async def fails_twice() -> AsyncIterator[KernelRecord]:
        yield record()
        if sources <= 2:
            raise OSError(5, "Input/output error")
        await broken.wait()

    def choose(_mode, _counters, on_state, _place) -> AsyncIterator[KernelRecord]:
        nonlocal sources
        sources += 1
        on_state("kmsg")
        return fails_twice()

    monkeypatch.setattr(kernel_log, "choose", choose)
    seen: set[bool | None] = set()
    made.start()
    await until(lambda: seen.add(made.up) or len(events) == 3, "three starts")  # type: ignore[func-returns-value]
    assert seen == {False, True}
    assert (made.up, made.counters["restarts"]) == (True, 2)
    made.stop()


async def test_a_source_that_is_absent_is_looked_for_again(reader, monkeypatch) -> None:
    made, events, _ = reader
    looks = 0

    async def one() -> AsyncIterator[KernelRecord]:
        yield record()
        await asyncio.sleep(60)

    def choose(_mode, _counters, on_state, _place) -> AsyncIterator[KernelRecord] | None:
        nonlocal looks
        looks += 1
        on_state("absent: no journald" if looks < 3 else "journal")
        return None if looks < 3 else one()

    monkeypatch.setattr(kernel_log, "choose", choose)
    made.start()
    await until(lambda: looks >= 1 and made.up is False, "the absence")
    assert made.state.startswith("absent")
    await until(lambda: events and made.up, "the source that came")
    made.stop()


async def test_a_reader_that_dies_of_a_bug_is_not_silent(reader, monkeypatch) -> None:
    made, _, _ = reader

    async def bug() -> AsyncIterator[KernelRecord]:
        raise ZeroDivisionError
        yield record()

    monkeypatch.setattr(kernel_log, "choose", lambda *_: bug())
    made.start()
    made.check()
    with pytest.raises(ZeroDivisionError):
        await until(made.check, "the bug")
    made.stop()


async def test_turned_off_by_config_is_neither_up_nor_down(tmp_path: Path) -> None:
    config = AgentConfig(state_directory=str(tmp_path), host=Host(kernel_log="none"))
    made = KernelReader(config, "n1", lambda _pci: None, lambda _event: None)
    made.start()
    await until(lambda: made.state == "off", "off")
    made.check()
    assert made.up is None
    made.stop()


def journal(folder: Path, ages_s: dict[str, float], fails_on: str = "") -> tuple[str, ...]:
    """Make a journalctl that notes how it was called and prints a line of each age; cursors are the names."""
    lines = [
        json.dumps({"MESSAGE": XID, "PRIORITY": "4", "SYSLOG_FACILITY": "0", "_TRANSPORT": "kernel",
                    "__CURSOR": name, "__REALTIME_TIMESTAMP": str(int((time.time() - age) * 1e6))})
        for name, age in ages_s.items()
    ]  # fmt: skip
    script = folder / "journalctl.py"
    script.write_text(
        f"import sys, time\nopen({str(folder / 'calls')!r}, 'a').write(sys.argv[-1] + chr(10))\n"
        f"if {fails_on!r} and {fails_on!r} in sys.argv[-1]: raise SystemExit(1)\n"
        f"print({chr(10).join(lines)!r}, flush=True)\ntime.sleep(60)\n"
    )
    return (sys.executable, str(script))


async def read(source: AsyncIterator[KernelRecord], number: int) -> list[KernelRecord]:
    found = []
    async with asyncio.timeout(30):
        async for each in source:
            found.append(each)
            if len(found) == number:
                break
    await source.aclose()  # type: ignore[attr-defined]
    return found


async def test_a_restarted_agent_goes_on_after_the_last_line_with_the_lines_own_time(tmp_path: Path) -> None:
    place = Place(known=True, cursor="c7", time_ns=time.time_ns() - 60 * 10**9)
    command = journal(tmp_path, {"c8": 700.0, "c9": 30.0, "c10": 1.0})
    found = await read(journal_source({}, lambda _state: None, command, place), 2)
    assert [round((time.time_ns() - each.time_ns) / 1e10) for each in found] == [3, 0], (
        "not over 10 minutes back, and under their own time"
    )
    assert (tmp_path / "calls").read_text() == "--after-cursor=c7\n"
    assert place.cursor == "c9", "a line counts as dealt with when the next is asked for"


async def test_an_old_or_wrong_cursor_means_the_last_ten_minutes(tmp_path: Path) -> None:
    long_ago = Place(known=True, cursor="c7", time_ns=time.time_ns() - 2 * BACK_NS)
    [option] = long_ago.journal_start(time.time_ns())[1:]
    assert abs(int(option.removeprefix("--since=@")) - (time.time() - 600)) < 5
    wrong = Place(known=True, cursor="gone", time_ns=time.time_ns())
    command = journal(tmp_path, {"c1": 2.0}, fails_on="gone")
    await read(journal_source({}, lambda _state: None, command, wrong), 1)
    first, second, *_ = (tmp_path / "calls").read_text().splitlines()
    assert (first, second[:9]) == ("--after-cursor=gone", "--since=@")
    assert Place().journal_start(time.time_ns()) == ("--lines=0",), "a first start tells no old news"


async def test_the_place_is_kept_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "kernel_place.json"
    file = PlaceFile(path, "boot-1")
    assert not file.place.known
    file.place.pass_by(41, 5, "c41")
    file.save(now=True)
    await until(path.exists, "the file")
    again = PlaceFile(path, "boot-1").place
    assert (again.sequence, again.cursor, again.known) == (41, "c41", True)
    assert PlaceFile(path, "boot-2").place.sequence == -1, "another boot's ring has other numbers"
    for damage in (b"", b"[1]", b'{"cursor":"a\\nb"}', b"\xff" * 9000):
        path.write_bytes(damage)
        assert not PlaceFile(path, "boot-1").place.known


@pytest.mark.needs_root
async def test_the_ring_is_read_from_where_the_last_agent_left_it() -> None:
    if not os.access("/dev/kmsg", os.R_OK | os.W_OK):
        pytest.skip("this machine lets not even root write /dev/kmsg")
    word, place = f"gpuvigil-place-{time.time_ns()}", Place(known=True)

    def write(number: int) -> None:
        Path("/dev/kmsg").write_text(f"{word} {number}\n")

    async def ours() -> AsyncIterator[KernelRecord]:
        async for each in kmsg_source({}, place=place):
            if word in each.text:
                yield each

    write(1)
    write(2)
    [first] = await read(ours(), 1)
    assert first.text.endswith(" 1")
    place.pass_by(first.sequence, first.time_ns)
    write(3)
    found = await read(ours(), 2)
    assert [each.text[-1] for each in found] == ["2", "3"], "each once, also what was logged meanwhile"
    assert abs(time.time_ns() - found[0].time_ns) < 60 * 10**9
