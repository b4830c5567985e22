"""From a rank's Flight Recorder to a verdict: condensed in the hook, checked by the agent, judged."""

from __future__ import annotations

import json
import threading
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.collective_world import World

from gpuvigil import evidence, flight, layout
from gpuvigil.ring import Control
from gpuvigil_agent import hook_events, hook_peer
from gpuvigil_agent.wire import event_message
from gpuvigil_collector.ingest import validate
from gpuvigil_detectors.base import FactEvent
from gpuvigil_detectors.training import live_records, standing
from gpuvigil_detectors.training.flight_dump import read_dump
from gpuvigil_detectors.training.flight_recorder import judge_dumps


class Who:
    """What an event needs of a rank."""

    def __init__(self, number: int) -> None:
        self.identity = hook_peer.Identity(job="j", rank=number, world_size=1000)
        self.entity = f"rank:j/{number}"


def carried(number: int, word: dict) -> FactEvent:
    """A hook's word as it comes out at the collector: through agent, wire and the ingest's checks."""
    told = hook_peer.parse_word(msgspec.json.encode(word))
    make = hook_events.flight if isinstance(told, hook_peer.Flight) else hook_events.standstill
    message = event_message(make(Who(number), told), 1)
    validate.check_event(message, message.ByteSize(), time.time_ns())
    return FactEvent(node="n", time_ns=message.time_ns, kind="collectives", origin="job",
                     entity=message.entity, fields=dict(message.fields))  # fmt: skip


def word_of(dump: bytes, members: dict[str, str]) -> dict:
    groups = flight.condense(json.loads(dump), members)
    return {"event": "flight", "number": 1, "stack": ["train.py:3 main"], "groups": groups}


def live(dumps: dict[str, bytes], *, stopped: frozenset[int] = frozenset()):
    """Judge a world's dumps as a living job's ranks tell them."""
    told = {}
    for name, data in dumps.items():
        number = int(name.rpartition("_")[2])
        config = json.loads(data)["pg_config"]
        members = {group["name"]: group["ranks"].strip("[]").replace(" ", "") for group in config.values()}
        told[number] = live_records.read(carried(number, word_of(data, members)))
    return live_records.blame([(number, one, number in stopped) for number, one in told.items()], 0)


@pytest.mark.parametrize("fault", ["host", "device_after", "device_before", "skip", "resize", "reorder"])
@pytest.mark.parametrize("timing", [True, False])
def test_what_is_condensed_tells_what_the_whole_dumps_tell(fault, timing):
    """All that is cut are records that no wait is about."""
    same = named = 0
    for seed in range(12):
        world = World(np.random.default_rng(seed))
        culprit = int(world.rng.integers(world.size))
        at = int(world.rng.integers(4, len(world.programs[culprit]) - 12))
        dumps = world.run(fault, (culprit,), at).dumps(as_json=True, timing=timing)
        whole = judge_dumps([read_dump(data, name) for name, data in dumps.items()])
        found = live(dumps)
        assert found is not None
        assert set(found.culprits) <= set(whole.culprits) or whole.kind == "unknown", (seed, found, whole)
        same += (found.culprits, found.kind) == (whole.culprits, whole.kind)
        named += bool(whole.culprits)
    assert same >= 11, f"{same} of 12 alike, {named} named"


def entry(sequence: int, name: str = "all_reduce", size: int = 10, dtype: str = "Float", done: bool = True):
    """A record as torch 2.13 writes it of gloo."""
    return {
        "record_id": sequence, "collective_seq_id": sequence, "op_id": sequence, "p2p_seq_id": 0, "pg_id": 0,
        "process_group": ["0", "default_pg"], "profiling_name": f"gloo:{name}", "input_sizes": [[size]],
        "input_dtypes": [dtype], "is_p2p": False, "retired": done, "state": "scheduled",
        "time_discovered_completed_ns": 0, "time_discovered_started_ns": 0,
    }  # fmt: skip


def gloo(entries: list[dict], ranks: str = "[0, 1, 2]") -> bytes:
    last = entries[-1]["collective_seq_id"]
    done = max((e["collective_seq_id"] for e in entries if e["retired"]), default=-1)
    status = {"last_enqueued_collective": str(last), "last_started_collective": "-1",
              "last_completed_collective": str(done)}  # fmt: skip
    config = {"": {"name": "", "desc": "", "ranks": "[]"}, "0": {"name": "0", "ranks": ranks}}
    return json.dumps({"version": "2.10", "pg_config": config, "pg_status": {"0": status},
                       "entries": entries}).encode()  # fmt: skip


def step(sequence: int) -> list[dict]:
    return [entry(sequence), entry(sequence + 1, "broadcast", 3)]


def judged(**odd) -> tuple:
    """Three ranks at op 5; the last does something else."""
    before = [*step(1), *step(3)]
    others = gloo([*before, entry(5, done=False)])
    found = live({"r_0": others, "r_1": others, "r_2": gloo([*before, entry(5, done=False, **odd)])})
    return found.culprits, found.kind, found.sentence


@pytest.mark.parametrize("odd", [{"name": "barrier"}, {"size": 11}, {"dtype": "Double"}])
def test_another_op_size_or_type_at_one_place_names_the_rank(odd):
    culprits, kind, sentence = judged(**odd)
    assert (culprits, kind) == ((2,), "desync"), sentence
    assert "rank 2 does" in sentence and "left out" not in sentence


def test_what_the_order_of_ops_tells_is_said_and_no_more():
    """Three kinds of op, so that one left out and one too many differ; of two kinds in turn they do not."""
    whole = [*step(1), entry(3, "barrier"), *step(4), entry(6, "barrier"), *step(7)]
    others = gloo([*whole[:6], entry(7, done=False)])
    left = live(
        {"r_0": others, "r_1": others, "r_2": gloo([*whole[:6], entry(7, "broadcast", 3, done=False)])}
    )
    assert left.sentence.endswith("by the order so far rank 2 left out all_reduce 7")
    others = gloo([*whole[:7], entry(8, "broadcast", 3, done=False)])
    more = live({"r_0": others, "r_1": others, "r_2": gloo([*whole[:7], entry(8, done=False)])})
    assert more.culprits == (2,)
    assert more.sentence.endswith("by the order so far rank 2 did all_reduce once more than the others")
    others = gloo([*whole[:6], entry(7, done=False)])
    more = live({"r_0": others, "r_1": others, "r_2": gloo([*whole[:6], entry(7, "barrier", done=False)])})
    assert more.sentence.endswith("by the order so far rank 2 did barrier once more than the others")
    both = judged(name="broadcast", size=3)[2]
    assert both.endswith("rank 2 left out all_reduce 5 or did broadcast once more than the others")


@pytest.mark.parametrize("name", ["1", "mesh_tp"])
def test_ranks_that_wait_for_each_other_in_different_groups_are_told_apart(name):
    """Rank 2 left out op 7 of group 0 and is in another group, which the others have not used yet."""
    before = [*step(1), *step(3), *step(5)]
    own = entry(1, "barrier", done=False) | {"process_group": [name, "undefined"], "pg_id": 1, "record_id": 9}
    members = {"0": "0-2", name: "0-2"}
    told = {}
    for rank in range(3):
        word = word_of(gloo([*before, *([own] if rank == 2 else [entry(7, done=False)])]), members)
        word["groups"] = flight.with_unused(word["groups"], ["0", name], members)
        told[rank] = live_records.read(carried(rank, word))
    found = live_records.blame([(rank, one, False) for rank, one in told.items()], 0)
    assert (found.culprits, found.kind) == ((2,), "desync")
    said = f"rank 2 waits in barrier 1 of group {name} undefined for others, who wait for it in another group"
    assert found.sentence.startswith(said)


def test_gloo_that_all_wait_in_alike_stays_unknown():
    alike = gloo([*step(1), entry(3, done=False)])
    found = live({f"r_{rank}": alike for rank in range(3)})
    assert (found.culprits, found.kind) == ((), "unknown")


def test_of_two_that_differ_nobody_is_named():
    first, second = ([entry(1, name, done=False)] for name in ("all_reduce", "barrier"))
    found = live({"r_0": gloo(first, "[0, 1]"), "r_1": gloo(second, "[0, 1]")})
    assert (found.culprits, found.kind) == ((), "desync")


def test_a_rank_that_stands_still_and_tells_nothing_holds_the_others():
    waits = gloo([*step(1), entry(3, done=False)])
    told = {n: live_records.read(carried(n, word_of(waits, {"0": "0-2"}))) for n in (0, 1)}
    rows = [(0, told[0], False), (1, told[1], False), (2, None, True)]
    found = live_records.blame(rows, 0)
    assert (found.culprits, found.kind) == ((2,), "stopped")
    assert live_records.blame([*rows[:2], (2, None, False)], 0) is None, "it has not answered yet"
    late = told[0].at_ns + 1
    assert live_records.blame(rows, late) is None, "records from before the stand say nothing of it"


def test_json_without_times_is_not_taken_for_complete():
    found = read_dump(gloo([entry(1), entry(2, done=False)], "[]"), "dump_1")
    assert [record.completed for record in found.records] == [True, False] and not found.times


def test_standstills_pass_the_collectors_checks():
    group = {"group": "Ä weird:name|x", "ranks": "0-3", "enqueued": 4, "started": None, "completed": 3}
    word = {"event": "standstill", "seconds": 11.0, "stack": ["a.py:1 f"], "groups": [group]}
    found = standing.read(carried(3, word))
    assert found.groups[0].enqueued == 4 and list(found.members.values()) == [(0, 1, 2, 3)]


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_keys = st.sampled_from(sorted(entry(1)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(_keys, _junk), max_size=5), _junk)
def test_any_dump_is_condensed_to_what_the_agent_takes(entries, status):
    groups = flight.condense({"entries": entries, "pg_status": status}, {})
    word = {"event": "flight", "number": 1, "stack": [], "groups": groups}
    hook_peer.parse_word(json.dumps(word).encode())


@given(
    st.dictionaries(st.sampled_from(["group_0", "ops_0", "group_x", "ops_", "stack"]), st.text(max_size=90))
)
def test_any_words_are_read(fields):
    event = FactEvent(node="n", time_ns=1, kind="collectives", origin="job", entity="rank:j/0",
                      fields=fields | {"source": "records"})  # fmt: skip
    told = live_records.read(event)
    live_records.blame([(0, told, False), (1, None, True)], 0)


@pytest.mark.parametrize("op", [
    "1:2:s:all_reduce:3", "1:2:x:all_reduce:3:Float", "-1:2:s:a:3:F", "1:2:s:a,b:3:F", "1:2:s:a\n:3:F",
    "1:2:s:a:3:F|x", "1:2:s:a:3:F\n", "9" * 19 + ":2:s:a:3:F", "1:2:s:" + "a" * 200 + ":3:F",
])  # fmt: skip
def test_an_op_that_is_none_is_refused_with_its_place(op):
    word = {"event": "flight", "number": 1, "stack": [], "groups": [{"group": "0", "ops": [op]}]}
    with pytest.raises(hook_peer.Refused, match="groups"):
        hook_peer.parse_word(json.dumps(word).encode())


def test_a_word_fits_a_message(monkeypatch):
    many = [entry(n, "reduce_scatter" * 3, 10**12, "BFloat16") for n in range(1, 3000)]
    full = [one | {"process_group": [f"group {n % 30}", "x" * 99], "retired": n % 3 > 0}
            for n, one in enumerate(many)]  # fmt: skip
    monkeypatch.setattr(evidence.collectives, "recent", lambda: flight.condense({"entries": full}, {}))
    monkeypatch.setattr(evidence.standstill, "stack", lambda: ["f" * 80] * 8)
    word = evidence.word(1)
    assert 1000 < len(json.dumps(word)) <= 4096 and word["groups"]
    fields = carried(0, word).fields
    ops = [op for key, value in fields.items() if key.startswith("ops_") for op in value.split(",")]
    assert len(ops) >= 7 and all(op.count(":") == 5 and op.endswith("BFloat16") for op in ops), "none is cut"


def waits(what, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_request_is_answered_once_and_one_dump_is_under_way_at_most(monkeypatch):
    said, gate, begun = [], threading.Event(), []

    def dump() -> list:
        begun.append(1)
        assert gate.wait(30)
        if len(begun) == 3:
            raise RuntimeError("torch is being torn down")
        return []

    monkeypatch.setattr(evidence.collectives, "recent", dump)
    control, made = Control(), evidence.Evidence(said.append)
    page = hook_peer.map_control(control.fd)

    def ask(number: int) -> None:
        page[layout.CONTROL_EVIDENCE_AT : layout.CONTROL_EVIDENCE_AT + 8] = number.to_bytes(8, "little")
        made.look(control.evidence)

    made.look(control.evidence)
    assert not begun
    for number in (5, 5, 6, 4):
        ask(number)
    waits(lambda: begun)
    time.sleep(0.05)
    assert len(begun) == 1 and not said, "the dump does not return, and nothing waits for it"
    gate.set()
    waits(lambda: said)
    ask(5)
    time.sleep(0.05)
    assert [word["number"] for word in said] == [5]
    waits(lambda: not made._thread.is_alive())
    ask(6)
    waits(lambda: len(said) == 2 and not made._thread.is_alive())
    ask(7)
    waits(lambda: len(begun) == 3 and not made._thread.is_alive())
    assert [word["number"] for word in said] == [5, 6], "what fails is told by nobody and harms nothing"
    control.close()


def test_ops_that_do_not_fit_a_field_are_left_out_whole():
    op = ":".join(["9" * 18, "9" * 18, "sp", "n" * 32, "9" * 15, "T" * 24])
    group = {"group": "0", "ranks": "0-3", "enqueued": 1, "started": None, "completed": 0, "ops": [op] * 8}
    fields = carried(0, {"event": "flight", "number": 1, "stack": [], "groups": [group]}).fields
    assert fields["ops_0"] == ",".join([op] * 4)
