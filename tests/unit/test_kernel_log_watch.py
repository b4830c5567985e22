"""From records to events: facility, GPU, storms, dead sources."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_log import Coalescer, KernelRecord, choose, journal_source, watch
from gpuvigil_agent.kernel_sources import parse_journal, parse_kmsg

XID = "NVRM: Xid (PCI:0000:3b:00): {}, pid=7, name=python, Ch 00000008"


def record(text, facility=0, sequence=1):
    return KernelRecord(facility, 4, sequence, time.time_ns(), text)


async def play(records, gpus=None):
    """Run watch over a list; returns the events and the counters."""
    events, counters = [], {}

    async def source():
        for each in records:
            yield each

    await asyncio.wait_for(watch(source(), (gpus or {}).get, events.append, counters), 60)
    return events, counters


async def test_an_xid_becomes_an_event_of_its_gpu():
    events, counters = await play([record(XID.format(79))], {"0000:3b:00": "GPU-1"})
    (event,) = events
    assert (event.kind, event.origin, event.code, event.entity) == ("xid", "kernel_log", 79, "gpu:GPU-1")
    assert event.fields["pid"] == "7"
    assert counters["events"] == 1


async def test_a_gpu_that_nobody_knows_is_the_nodes():
    (event,), _ = await play([record(XID.format(79))])
    assert (event.entity, event.fields["pci"]) == ("node", "0000:3b:00")


async def test_other_facilities_yield_nothing_and_are_counted():
    events, counters = await play([record(XID.format(79), facility) for facility in range(1, 24)])
    assert events == []
    assert counters["refused_facility"] == 23


async def test_an_injected_row_is_synthetic():
    text = "NVRM: Xid (PCI:0000:3b:00): 145, RLW_REMAP Fatal XC0 i1 Link 03 (0x4 0x8)"
    (event,), _ = await play([record(text)])
    assert event.synthetic


async def test_hostile_text_reaches_no_terminal():
    (event,), _ = await play([record(XID.format(13) + "\x1b[2J\x00\u202e" + "A" * 5000)])
    assert event.text.isprintable()
    assert len(event.text) <= 400


async def test_a_storm_is_few_events_with_the_exact_number_and_hides_no_other_code():
    storm = [record(XID.format(31), sequence=n) for n in range(1500)]
    storm.insert(900, record(XID.format(79)))
    events, counters = await play(storm, {"0000:3b:00": "GPU-1"})
    assert sum(int(e.fields.get("count", "1")) for e in events if e.code == 31) == 1500
    assert len([e for e in events if e.code == 31]) <= 10
    assert [e.fields.get("count", "1") for e in events if e.code == 79] == ["1"]
    assert counters["events"] == 1501


async def test_reading_is_held_to_a_rate():
    started = time.monotonic()
    _, counters = await play([record("usb 1-1: hello")] * 2001)
    assert counters["pauses"] >= 1
    assert time.monotonic() - started >= 1


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 0.5)), max_size=600))
def test_the_coalescer_loses_no_number_whatever_comes(offers):
    coalescer, now_s, sent = Coalescer({}), 0.0, []
    for key, wait_s in offers:
        now_s += wait_s
        event = AgentEvent(time_ns=1, kind="xid", origin="kernel_log", entity="node", code=key, fields={})
        sent.append(coalescer.offer(("xid", str(key), "node", "False", f"x={key}"), event, now_s))
        sent += coalescer.flush(now_s) if key % 7 == 0 else []
    sent += coalescer.rest()
    for code in {key for key, _ in offers}:
        total = sum(int(e.fields.get("count", "1")) for e in sent if e is not None and e.code == code)
        assert total == [key for key, _ in offers].count(code)


def test_a_kmsg_record_is_read_with_its_facility_and_its_escapes():
    found = parse_kmsg(b"12,347,2075234856,-;a\\x0aNVRM: \\xff\n SUBSYSTEM=pci\n", boot_ns=1000)
    assert found == KernelRecord(1, 4, 347, 1000 + 2075234856 * 1000, "a\nNVRM: \ufffd")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_readers(data):
    for found in (parse_kmsg(data, 0), parse_journal(data, 1)):
        assert found is None or found


def journal_line(**changes):
    fields = {"MESSAGE": XID.format(79), "PRIORITY": "4", "SYSLOG_FACILITY": "0", "_TRANSPORT": "kernel",
              "__CURSOR": "s=1;i=2", "__REALTIME_TIMESTAMP": "1700000000000000"}  # fmt: skip
    return json.dumps({k: v for k, v in (fields | changes).items() if v != "absent"}).encode()


def test_a_journal_line_counts_only_from_the_kernels_transport_with_a_facility():
    found, cursor = parse_journal(journal_line(), 5)
    assert (found.facility, found.sequence, found.time_ns, cursor) == (0, 5, 1700000000 * 10**9, "s=1;i=2")
    assert parse_journal(journal_line(SYSLOG_FACILITY="3"), 1)[0].facility == 3
    for changes in (
        {"_TRANSPORT": "syslog"}, {"_TRANSPORT": "journal"}, {"_TRANSPORT": "absent"},
        {"_TRANSPORT": ["kernel", "syslog"]}, {"SYSLOG_FACILITY": "absent"}, {"SYSLOG_FACILITY": "x"},
        {"SYSLOG_FACILITY": ["0", "0"]}, {"MESSAGE": None}, {"MESSAGE": [999]}, {"__REALTIME_TIMESTAMP": "y"},
    ):  # fmt: skip
        assert parse_journal(journal_line(**changes), 1) is None, changes


def test_a_message_that_is_not_utf8_comes_as_bytes():
    found, _ = parse_journal(journal_line(MESSAGE=[*b"NVRM: x ", 255]), 1)
    assert found.text == "NVRM: x \ufffd"


async def test_a_journalctl_that_ends_is_started_again_at_its_cursor(tmp_path):
    script = tmp_path / "journalctl.py"
    calls = tmp_path / "calls"
    recent = journal_line(__REALTIME_TIMESTAMP=str(time.time_ns() // 1000))
    script.write_text(
        "import sys\n"
        f"open({str(calls)!r}, 'a').write(sys.argv[-1] + chr(10))\n"
        f"sys.stdout.buffer.write(b'x' * 200000 + b'\\n' + {recent!r} + b'\\nnot json\\n')\n"
    )
    counters, states, texts = {}, [], []
    source = journal_source(counters, states.append, (sys.executable, str(script)))
    async with asyncio.timeout(30):
        async for found in source:
            texts.append(found.text)
            if len(texts) == 2:
                break
    await source.aclose()
    assert calls.read_text().split("\n")[:2] == ["--lines=0", "--after-cursor=s=1;i=2"]
    assert counters["journal_restarts"] == 1
    assert counters["too_long"] >= 1
    assert counters["malformed"] >= 1
    assert any("ended" in state for state in states)


async def test_the_watch_ends_at_once_in_the_middle_of_a_storm():
    """A journalctl whose full pipe nobody reads any more must not hold up the agent's end."""
    storm = f"import sys\nwhile True: sys.stdout.buffer.write({journal_line()!r} + b'\\n')"
    counters, events = {}, []
    source = journal_source(counters, lambda state: None, (sys.executable, "-c", storm))
    task = asyncio.create_task(watch(source, lambda pci: None, events.append, counters))
    async with asyncio.timeout(30):
        while not counters.get("pauses"):
            await asyncio.sleep(0.05)
    task.cancel()
    started = time.monotonic()
    await asyncio.gather(task, return_exceptions=True)
    await source.aclose()
    assert time.monotonic() - started < 6
    assert sum(int(event.fields.get("count", "1")) for event in events) == counters["events"]


def test_where_there_is_no_source_the_state_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    counters, states = {}, []
    assert choose("journal", counters, states.append) is None
    assert counters == {"absent": 1}
    assert states == ["absent: no journald with journalctl on this machine"]
    assert choose("none", counters, states.append) is None
    assert states[-1] == "off"
