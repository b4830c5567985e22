"""R13: what is empty, a wildcard, a placeholder or unknown is no target, whoever says so."""

from __future__ import annotations

import typing
from dataclasses import replace

import pytest
from unit.safety_world import ask, changed, fleet, held, judge, node, state, with_job

from gpuvigil_collector.action import JobState, Kind

KINDS = typing.get_args(Kind)
NO_NAMES = [
    "",
    " ",
    "*",
    ".*",
    "n*",
    "n?",
    "n[0-9]",
    "^n0$",
    "n0|n1",
    "n0,n1",
    "(n0)",
    "n0\n",
    "n0 ",
    " n0",
    "None",
    "none",
    "null",
    "NIL",
    "nan",
    "undefined",
    "all",
    "ALL",
    "any",
    "%",
    "..",
    "/",
    "n0/n1",
    "\\w+",
    "\u0578\u0580",
    "n" * 300,
    "n0\x00",
    "$(reboot)",
    "{}",
    "-",
]
NO_VALUES = [None, 0, 1, True, b"n0", ("n0",), ["n0"], {"n0": 1}, float("nan"), ...]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NO_NAMES, *NO_VALUES, "n99", "N0"], ids=ascii)
def test_r13_what_is_not_one_known_node_is_refused(kind, name):
    verdict = judge(
        held(with_job(), "n0"), ask(kind, "n0") if name == "n0" else replace(ask(kind), node=name)
    )
    assert not verdict.allowed and not next(g for g in verdict.gates if g.name == "target").passed
    assert type(name) is not str or verdict.gate == "target"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_r13_an_inventory_that_holds_such_a_name_changes_nothing(kind, name):
    of = state(
        fleet() | {name: node(name, hold="ours", jobs=("j1",))}, (JobState(job="j1", nodes=(name,), gpus=0),)
    )
    assert judge(of, replace(ask(kind), node=name)).gate == "target"


@pytest.mark.parametrize("kind", ["checkpoint", "stop_job", "move_job"])
@pytest.mark.parametrize("name", [*NO_NAMES, *NO_VALUES, "j2"], ids=ascii)
def test_r13_what_is_not_one_known_job_is_refused(kind, name):
    of = with_job()
    if type(name) is str and name != "j2":
        of = replace(of, jobs=dict(of.jobs) | {name: replace(of.jobs["j1"], job=name)})
    assert judge(of, ask(kind, job=name)).gate == "target"


@pytest.mark.parametrize("name", [*NO_NAMES, *NO_VALUES, "GPU-n1-0", "0"], ids=ascii)
def test_r13_what_is_not_one_known_gpu_is_refused(name):
    of = held(state(), "n0")
    if type(name) is str and not name.startswith("GPU") and name != "0":
        of = changed(of, "n0", gpu_uuids=(name,))
    assert judge(of, ask("reset_gpu", gpu=name)).gate == "target"
    assert judge(held(state(), "n0"), ask("reboot", gpu="GPU-n0-0")).gate == "target"
    assert judge(state(), ask("hold", job="j1")).gate == "target"


def test_r13_a_job_that_runs_elsewhere_is_not_moved_for_this_node():
    assert judge(with_job(on=("n1",)), ask("move_job")).gate == "target"


@pytest.mark.parametrize("kind", ["", None, "drain", "HOLD", [], 3])
def test_r13_what_is_no_kind_is_refused(kind):
    assert not judge(state(), replace(ask(), kind=kind)).allowed
