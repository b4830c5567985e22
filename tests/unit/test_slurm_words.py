"""What Slurm says, word for word: marks, host lists, GPUs, topology, reservations, JSON of two versions."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_collector.slurm import gres, hostlist, jobs, nodes, reason, records, topology
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_protos.settings import ConfigError, Seconds

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)


@given(st.text(), st.text(), ids, st.integers(0, 10**9))
def test_a_mark_is_read_back_as_it_was_written(code: str, why: str, incident: str, generation: int) -> None:
    mark = reason.make(code, why, incident, generation)
    assert reason.parse(mark.text()) == mark
    assert len(mark.head) <= reason.HEAD_MAX and mark.text().isascii() and mark.text().isprintable()
    assert not set(mark.head) & set("'\"\\=,[]{}$`#\n")


@given(ids, ids, st.text(min_size=1, max_size=5), st.integers(0, 200))
def test_one_letter_of_a_person_makes_it_theirs(a: str, why: str, theirs: str, at: int) -> None:
    text = reason.make("gpu_lost", why, a, 3).text()
    edited = text[: at % len(text)] + theirs + text[at % len(text) :]
    found = reason.parse(edited)
    assert found is None or found.text() == edited  # at worst a text that we could have written
    assert reason.parse(text + theirs) is None and reason.parse(theirs + text) is None


@given(st.lists(ids, min_size=1, max_size=reason.INCIDENTS_MAX, unique=True))
def test_the_last_incident_ends_the_hold(incidents: list[str]) -> None:
    mark = reason.make("c", "w", incidents[0], 1)
    for incident in incidents[1:]:
        mark = mark.with_incident(incident, 2)
    assert mark.incidents == tuple(incidents) and reason.parse(mark.text()) == mark
    left: reason.Mark | None = mark
    for incident in incidents:
        assert left is not None
        left = left.without(incident, 3)
    assert left is None


def test_too_many_incidents_are_an_error() -> None:
    mark = reason.make("c", "w", "i0", 1)
    for number in range(1, reason.INCIDENTS_MAX):
        mark = mark.with_incident(f"i{number}", 1)
    with pytest.raises(ValueError, match="incidents already"):
        mark.with_incident("more", 1)
    assert mark.with_incident("i0", 2).incidents[-1] == "i0"


@pytest.mark.parametrize("incident", ["", "a b", "a]", "-x", "x" * 65, "é", "a\n"])
def test_an_id_that_cannot_be_read_back(incident: str) -> None:
    with pytest.raises(ValueError, match="incident's id"):
        reason.make("c", "w", incident, 1)


@pytest.mark.parametrize(
    "text",
    [
        "gn[1-",
        "gn[4-1]",
        "gn[1-99999999]",
        "a b",
        "gn[1-2",
        "x[[1]]",
        ",",
        "a,,b",
        "gn[-1]",
        "a[1-9999][1-9999]",
        "é",
    ],
)
def test_bad_hostlists(text: str) -> None:
    with pytest.raises(hostlist.BadHostlistError):
        hostlist.expand(text)


@given(st.text(alphabet="gn[]0123456789,-", max_size=30))
def test_any_hostlist_is_bounded(text: str) -> None:
    with contextlib.suppress(hostlist.BadHostlistError):
        assert len(hostlist.expand(text)) <= hostlist.HOSTS_MAX


@pytest.mark.parametrize(
    ("text", "count", "indices"),
    [
        ("gpu:h100:8", 8, ()), ("gpu:8(S:0-1)", 8, (0, 1)), ("gpu:h100:4(IDX:0-3)", 4, (0, 1, 2, 3)),
        ("gpu:a100:3(IDX:0,2-3),nic:1(IDX:0)", 3, (0, 2, 3)), ("nic:2", 0, ()),
        ("gpu:h100:0(IDX:N/A)", 0, ()), ("shard:8,gpu:h100:2(IDX:6-7)", 2, (6, 7)), ("notgpu:4", 0, ()),
        ("(null)", 0, ()), ("", 0, ()),
    ],
)  # fmt: skip
def test_gres(text: str, count: int, indices: tuple[int, ...]) -> None:
    assert gres.count(text) == count and gres.indices(text) == indices


def test_topology_that_contradicts_itself() -> None:
    text = (
        "SwitchName=r1 Level=0 LinkSpeed=1 Nodes=gn[1-2]\nSwitchName=r2 Level=0 LinkSpeed=1 Nodes=gn[2-3]\n"
        "SwitchName=r3 Level=0 LinkSpeed=1 Nodes=gn2\n"
        "SwitchName=top Level=1 LinkSpeed=1 Nodes=gn[1-3] Switches=r[1-3]\n"
    )
    found, troubles = topology.domains(text)
    assert found == {"gn1": "r1", "gn3": "r2"} and len(troubles) == 2
    assert "gn2 is below r1 and below r2" in troubles[0]
    assert topology.domains("No topology information available\n") == ({}, ())
    with pytest.raises(records.NonsenseError):
        topology.domains("SwitchName=r1 Level=0 LinkSpeed=1 Nodes=gn[2-\n")
    with pytest.raises(records.NonsenseError, match="reservation"):
        topology.maintenance("what is this\n")
    assert topology.maintenance("No reservations in the system\n") == {}


OLD_NODE: dict[str, Any] = {
    "name": "gn1", "hostname": "gn1", "address": "10.0.0.1", "state": "mixed", "state_flags": ["DRAIN"],
    "partitions": ["gpu"], "gres": "gpu:h100:8", "reason": "gpuvigil: gpu_lost x [i1 g3]",
    "reason_changed_at": 1795614251, "reason_set_by_user": "root", "boards": 1,
}  # fmt: skip
# the shape that 23.11 and later document; not read from a server here
NEW_NODE = {
    **{key: value for key, value in OLD_NODE.items() if key != "state_flags"},
    "state": ["MIXED", "DRAIN"],
    "reason_changed_at": {"set": True, "infinite": False, "number": 1795614251},
}
JOB: dict[str, Any] = {
    "job_id": 7, "job_state": "RUNNING", "user_name": "ann", "user_id": 1000, "nodes": "gn[1-2]",
    "partition": "gpu", "batch_flag": True, "requeue": True, "restart_cnt": 0, "start_time": 5,
    "state_reason": "None", "array_job_id": 0, "array_task_id": None, "het_job_id": 0, "comment": "",
    "required_nodes": "", "excluded_nodes": "", "gres_detail": ["gpu:h100:4(IDX:0-3)", "gpu:h100:4(IDX:4-7)"],
}  # fmt: skip


def job(**changed: Any) -> jobs.SlurmJob:
    return jobs.read_all(records.jobs(json.dumps({"jobs": [{**JOB, **changed}], "errors": []})))[0]


def test_nodes_of_old_and_new_versions_are_the_same() -> None:
    old, new = (
        nodes.read(records.nodes(json.dumps({"nodes": [node], "errors": []}))[0])
        for node in (OLD_NODE, NEW_NODE)
    )
    assert old == new and old.hold == "ours" and old.mark is not None and old.changed_s == 1795614251


def test_jobs_of_old_and_new_versions_are_the_same() -> None:
    new = job(
        job_state=["RUNNING"], start_time={"set": True, "infinite": False, "number": 5},
        array_job_id={"set": False, "infinite": False, "number": 0}, het_job_id={"set": True, "number": 0},
        array_task_id={"set": False, "infinite": False, "number": 0},
    )  # fmt: skip
    assert new == job() and new.gpus == 8 and new.gpu_indices["gn2"] == (4, 5, 6, 7) and new.refusals == ()


@pytest.mark.parametrize("field", sorted(set(JOB) | {"nodes"}))
@pytest.mark.parametrize("value", [{"x": 1}, [7], 1.5], ids=str)
def test_a_job_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(records.NonsenseError):
        job(**{field: value})


@pytest.mark.parametrize("field", sorted(JOB))
def test_a_job_without_a_field_is_refused(field: str) -> None:
    less = {key: value for key, value in JOB.items() if key != field}
    with pytest.raises(records.NonsenseError, match=field):
        records.jobs(json.dumps({"jobs": [less]}))


@given(st.text(max_size=60))
def test_any_text_is_an_answer_or_refused(text: str) -> None:
    for parse in (records.nodes, records.jobs):
        with pytest.raises(records.NonsenseError):
            parse(text)


@pytest.mark.parametrize(
    ("comment", "signal"),
    [
        ("gpuvigil:signal=USR1@30", ("USR1", 30)),
        ("x gpuvigil:movable gpuvigil:signal=TERM@5 y", ("TERM", 5)),
        ("gpuvigil:signal=KILL@5", None), ("gpuvigil:signal=USR1@30x", None),
        ("agpuvigil:signal=USR1@3", None),
        ("gpuvigil:signal=USR1@9999", None), ("", None),
    ],
)  # fmt: skip
def test_the_jobs_own_word(comment: str, signal: tuple[str, int] | None) -> None:
    found = job(comment=comment).signal
    assert (found and (found.name, found.wait_s)) == signal


def test_opt_in() -> None:
    assert job(array_job_id=3, array_task_id=2).refusals == ("array",)
    assert job(array_job_id=3, array_task_id=2, comment="a gpuvigil:movable").refusals == ()
    assert job(array_job_id=3, array_task_id=0).job == "3_0" and job(array_job_id=3).job == "3_[]"
    assert job(het_job_id=4, comment="gpuvigil:movables").refusals == ("het",)
    assert job(batch_flag=False, requeue=False).refusals == ("interactive", "no_requeue")
    read = jobs.read_all(records.jobs(json.dumps({"jobs": [JOB]})), opt_in_all=True)
    assert read[0].refusals == ("not_opted_in",)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"stale": Seconds(5)}, "stale"), ({"call": Seconds(0)}, "call"), ({"folder": "bin"}, "folder")],
)
def test_settings(changed: dict[str, Any], named: str) -> None:
    SlurmSettings().check("x")
    with pytest.raises(ConfigError, match=named):
        SlurmSettings(**changed).check("x")
