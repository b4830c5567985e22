"""Bad input, one by one: every refusal has its word, every message is printable, no good sample is lost."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration.wire_client import FAST, SECOND, batch, block, dictionary, event, gap

from gpuvigil_collector.ingest import validate
from gpuvigil_collector.ingest.dictionary import parse
from gpuvigil_collector.ingest.refusal import RefusedError
from gpuvigil_protos.codec import blocks_crc, pack_float32
from gpuvigil_protos.v1 import stream_pb2 as pb

NOW = time.time_ns()
CENTURY = 100 * 366 * 86_400 * SECOND
GOOD = [50.0, 300.0, 0.5]
HOSTILE = ["\x1b[31m", "<script>alert(1)</script>", "a\nb", "x" * 65536, "", "\u202e", '"', "gpu:", "gpu:a b"]


def take(made: pb.Batch, size: int = 100) -> list[validate.Block]:
    return validate.check_batch(made, size, parse(dictionary(), 5000), time.time_ns())


def spoil(made: pb.Batch, values: bytes) -> pb.Batch:
    made.blocks[0].values = values
    made.crc = blocks_crc(made.blocks)
    return made


BAD_BATCHES = {
    "too few bytes": (lambda: spoil(batch(1), pack_float32(GOOD)[:-1]), "bad_length"),
    "too many values": (lambda: spoil(batch(1), pack_float32([*GOOD, 1.0])), "bad_length"),
    "no values": (lambda: spoil(batch(1), b""), "bad_length"),
    "no ticks": (lambda: batch(1, [pb.Block(group=FAST, values=b"")]), "bad_length"),
    "too many ticks": (lambda: batch(1, [block([0.0] * 3 * 601, tick_ns=[NOW] * 601)]), "bad_length"),
    "too many blocks": (lambda: batch(1, [block(GOOD)] * 65), "bad_length"),
    "unknown group": (lambda: batch(1, [block(GOOD, group=9)]), "unknown_series"),
    "unknown dictionary": (lambda: batch(1, version=7), "unknown_series"),
    "a century ago": (lambda: batch(1, [block(GOOD, tick_ns=[NOW - CENTURY])]), "bad_time"),
    "in a century": (lambda: batch(1, [block(GOOD, tick_ns=[NOW + CENTURY])]), "bad_time"),
    "the first century": (lambda: batch(1, [block(GOOD, tick_ns=[-(1 << 63)])]), "bad_time"),
    "the last": (lambda: batch(1, [block(GOOD, tick_ns=[(1 << 63) - 1])]), "bad_time"),
    "sequence 0": (lambda: batch(0), "bad_length"),
    "sequence 2^64 - 1": (lambda: batch((1 << 64) - 1), "bad_length"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_bad_batch_is_refused_by_its_word(name):
    made, reason = BAD_BATCHES[name]
    with pytest.raises(RefusedError) as refused:
        take(made())
    assert refused.value.reason == reason
    assert "expected" in refused.value.detail
    assert "got" in refused.value.detail


def test_a_flipped_bit_anywhere_in_the_values_is_seen():
    for position in range(12):
        made = batch(1)
        data = bytearray(made.blocks[0].values)
        data[position] ^= 1
        made.blocks[0].values = bytes(data)
        with pytest.raises(RefusedError, match="bad_crc"):
            take(made)


def test_too_large_a_message_is_refused_before_it_is_looked_at():
    with pytest.raises(RefusedError, match="too_large"):
        take(batch(1), size=(1 << 20) + 1)


def test_wrong_class_is_refused():
    made = batch(1)
    setattr(made, "class", pb.CLASS_EVENTS)
    with pytest.raises(RefusedError, match="class"):
        take(made)


@given(st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_what_no_hardware_says_is_taken_out_alone(values):
    columns = parse(dictionary(), 5000).groups[FAST]
    clean, taken_out = validate.quarantine(np.array([values], np.float32), columns)
    high = (150, 5000, 1)
    good = [0 <= value <= top for value, top in zip(values, high, strict=True)]
    absent = sum(np.isnan(values))
    assert np.isfinite(clean[0]).tolist() == good
    assert taken_out == good.count(False) - absent
    assert all(
        a == b for a, b, keep in zip(clean[0], np.array(values, np.float32), good, strict=True) if keep
    )


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 3e38, -1.0])
def test_infinities_and_huge_values_never_reach_the_ring(value):
    columns = parse(dictionary(), 5000).groups[FAST]
    clean, taken_out = validate.quarantine(np.array([[20.0, value, 0.5]], np.float32), columns)
    assert taken_out == 1
    assert np.isnan(clean[0, 1])
    assert clean[0, [0, 2]].tolist() == [20.0, 0.5]


def test_a_newer_agents_metric_is_skipped_and_the_rest_stays():
    fast = (("gpu_power_watts", "gpu:GPU-0"), ("gpu_from_next_year", "gpu:GPU-0"), ("node_load1", "node"),
            ("gpu_power_watts", "disk:sda"), ("node_load1", "node"))  # fmt: skip
    parsed = parse(dictionary(fast=fast), 5000)
    assert parsed.unknown == 3
    clean, taken_out = validate.quarantine(np.array([[1, 2, 3, 4, 5]], np.float32), parsed.groups[FAST])
    assert (clean.tolist(), taken_out) == ([[1, 3]], 0)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["metric", "entity"])
def test_hostile_names_refuse_the_dictionary_and_are_not_echoed_raw(text, place):
    series = ("gpu_power_watts", text) if place == "entity" else (text, "node")
    with pytest.raises(RefusedError) as refused:
        parse(dictionary(fast=(series,)), 5000)
    assert refused.value.reason == "bad_text"
    assert refused.value.detail.isprintable()
    assert refused.value.detail.isascii()
    assert len(refused.value.detail) < 600


def test_a_series_explosion_is_refused():
    many = tuple(("node_load1", f"disk:{n}") for n in range(5001))
    with pytest.raises(RefusedError, match="too_many_series"):
        parse(dictionary(fast=many), 5000)
    groups = pb.Dictionary(groups=[pb.Group(id=n, period_ns=SECOND) for n in range(65)])
    with pytest.raises(RefusedError, match="too_many_series"):
        parse(groups, 5000)


@pytest.mark.parametrize("period_ns", [0, -1, 1 << 62])
def test_a_senseless_period_is_refused(period_ns):
    with pytest.raises(RefusedError):
        parse(pb.Dictionary(groups=[pb.Group(id=1, period_ns=period_ns)]), 5000)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": pb.EVENT_KIND_UNSPECIFIED}, {"origin": 99}, {"kind": 99}, {"text": "x" * 4097},
        {"fields": {"<b>": "x"}}, {"fields": {f"k{n}": "v" for n in range(21)}},
        {"fields": {"pci": "x" * 513}}, *({"entity": text} for text in HOSTILE),
    ],
    ids=repr,
)  # fmt: skip
def test_a_bad_event_is_refused(fields):
    with pytest.raises(RefusedError, match="bad_text") as refused:
        validate.check_event(event(1, **fields), 100, time.time_ns())
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize("shift", [-CENTURY, CENTURY])
def test_an_event_of_another_century_is_refused(shift):
    with pytest.raises(RefusedError, match="bad_time"):
        validate.check_event(event(1, time_ns=NOW + shift), 100, time.time_ns())


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 4), (1, 1 << 63)])
def test_a_senseless_gap_is_refused(first, last):
    with pytest.raises(RefusedError, match="bad_length"):
        validate.check_gap(gap(first, last))


def test_a_gaps_reason_becomes_a_label_and_so_must_be_a_word():
    with pytest.raises(RefusedError, match="bad_text"):
        validate.check_gap(gap(1, 2, reason='x"} 1\ngpuvigil_fake 1'))


@given(st.text(max_size=200))
def test_cleaned_text_is_printable_and_keeps_what_was(text):
    clean = validate.clean_text(text)
    assert clean.isprintable() or not clean
    if text.isprintable():
        assert clean == text
