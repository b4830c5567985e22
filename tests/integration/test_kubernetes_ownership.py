"""Whose cordon it is, on a real API server: what an administrator or another tool has set is never undone."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from typing import Any

import pytest
from integration.kube_lab import KubeLab, lab, wait
from integration.kube_things import (
    action,
    actuator,
    change_node,
    cordon,
    fence,
    make_node,
    marks_of_ours,
    node,
)

from gpuvigil_collector.action import RefusedError
from gpuvigil_collector.kube import withdraw
from gpuvigil_collector.kube.marks import ANNOTATIONS, TAINT_KEY

__all__ = ["lab"]
pytestmark = [pytest.mark.needs_kube, pytest.mark.timeout(300)]


def test_r6_foreign_cordon_is_refused_and_stays(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    cordon(lab, name)
    assert act.look(action("hold", name)).state == "foreign"
    with pytest.raises(RefusedError, match="somebody else"):
        act.apply(action("hold", name), fence())
    with pytest.raises(RefusedError, match="somebody else"):
        act.apply(action("release", name), fence())
    assert node(lab, name)["spec"]["unschedulable"] is True and marks_of_ours(node(lab, name)) == []


def test_r6_a_cordon_set_anew_by_an_admin_stays(lab: KubeLab) -> None:
    name, act = make_node(lab), actuator(lab)
    act.apply(action("hold", name), fence())
    cordon(lab, name, on=False)
    assert act.look(action("hold", name)).state == "foreign"
    with pytest.raises(RefusedError, match="took the cordon"):
        act.apply(action("hold", name), fence())
    cordon(lab, name)
    assert "another's and stays" in act.apply(action("release", name), fence())
    assert marks_of_ours(node(lab, name)) == [] and node(lab, name)["spec"]["unschedulable"] is True


def admin_moves(lab: KubeLab, name: str) -> dict[str, Any]:
    """What an administrator or another tool may do at any moment; each as one change."""
    other = {"key": "example.com/broken", "value": "yes", "effect": "NoSchedule"}
    ours_changed = {"key": TAINT_KEY, "value": "by-hand", "effect": "NoSchedule"}
    return {
        "cordon": lambda: cordon(lab, name),
        "uncordon": lambda: cordon(lab, name, on=False),
        "taint": lambda: change_node(lab, name, {"spec": {"taints": [other]}}),
        "retaint": lambda: change_node(lab, name, {"spec": {"taints": [ours_changed]}}),
        "annotate": lambda: change_node(lab, name, {"metadata": {"annotations": {"team": "research"}}}),
    }


def calm(lab: KubeLab, name: str) -> None:
    """Wait until the node controller has reacted: it writes the taints as it saw them, over the admin's."""

    def reacted() -> bool:
        spec = node(lab, name)["spec"]
        theirs = any(one["key"] == "node.kubernetes.io/unschedulable" for one in spec.get("taints", []))
        return theirs == bool(spec.get("unschedulable"))

    wait(reacted, 30, lambda: f"{name}: the node controller did not react")


def others_taints(found: dict[str, Any]) -> list[dict[str, str]]:
    """The taints of a node that are neither ours nor the node controller's."""
    every = found["spec"].get("taints", [])
    others = [one for one in every if not one["key"].startswith("node.kubernetes.io/")]
    return [one for one in others if (one["key"], one.get("value")) != (TAINT_KEY, "held")]


def prepare(lab: KubeLab, name: str, moves: dict[str, Any], words: tuple[str, ...]) -> None:
    """Let the admin act before our hold, until it stands."""
    for word in words:
        moves[word]()
        calm(lab, name)
        while "taint" in word and not others_taints(node(lab, name)):
            moves[word]()  # a late write of the node controller, of when the node came up, took it off


WORDS = ("cordon", "uncordon", "taint", "retaint", "annotate")
ROUNDS = int(os.environ.get("GPUVIGIL_KUBE_ROUNDS", "1"))  # 25 rounds are R6's 1,000 schedules


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_r6_interleavings_never_undo_what_others_set(lab: KubeLab, seed: int, record_property) -> None:
    """Admin's edits between our steps, in seeded order: what was theirs at the end is there at the end."""
    act, rng = actuator(lab), random.Random(seed)
    pairs = list(itertools.permutations(WORDS, 2))
    longer = [tuple(rng.choices(WORDS, k=rng.randint(2, 5))) for _ in range(20 if seed == 0 else 40)]
    schedules = [*pairs, *longer] if seed == 0 else longer
    for before, after in [(s[:1], s[1:]) for s in schedules]:
        name = make_node(lab)
        moves = admin_moves(lab, name)
        prepare(lab, name, moves, before)
        held = True
        try:
            act.apply(action("hold", name), fence())
        except RefusedError:
            held = False
        assert held == (before[0] in ("uncordon", "taint", "annotate")), (before, node(lab, name))
        theirs = before[0] == "cordon"  # theirs: the last who set spec.unschedulable was the admin
        for word in after:
            was = bool(node(lab, name)["spec"].get("unschedulable"))
            moves[word]()
            calm(lab, name)
            if word in ("cordon", "uncordon") and was != (word == "cordon"):
                theirs = word == "cordon"
        wanted = node(lab, name)
        with contextlib.suppress(RefusedError):
            act.apply(action("release", name), fence())
        left = node(lab, name)
        assert bool(left["spec"].get("unschedulable")) == theirs, (before, after)
        assert not [key for key in ANNOTATIONS if key in left["metadata"].get("annotations", {})]
        kept, want = others_taints(left), others_taints(wanted)
        assert sorted(kept, key=str) == sorted(want, key=str), (before, after)
        ours = {"key": TAINT_KEY, "value": "held", "effect": "NoSchedule"}
        assert ours not in left["spec"].get("taints", []), (before, after)
        if "annotate" in (*before, *after):
            assert left["metadata"]["annotations"]["team"] == "research"
    record_property("n", len(schedules))


def test_two_writers_one_hold(lab: KubeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cordons between our look and our patch: the server refuses the patch, and we see them."""
    name, act = make_node(lab), actuator(lab)
    patch = act._calls.api.patch

    def slower(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(act._calls.api, "patch", patch)
        cordon(lab, name)
        return patch(*arguments, **more)

    monkeypatch.setattr(act._calls.api, "patch", slower)
    with pytest.raises(RefusedError, match="somebody else"):
        act.apply(action("hold", name), fence())
    assert marks_of_ours(node(lab, name)) == []


def test_r6_uninstalling_leaves_no_trace_and_no_foreign_thing_undone(
    lab: KubeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    act = actuator(lab)
    held, twice, recordoned, foreign, broken = (make_node(lab) for _ in range(5))
    for one in (held, twice, recordoned):
        act.apply(action("hold", one), fence())
    act.apply(action("hold", twice, incident="INC-2"), fence())
    for one in (recordoned, foreign):
        cordon(lab, one, on=False)
        cordon(lab, one)
    change_node(lab, broken, {"metadata": {"annotations": {ANNOTATIONS[1]: ",,"}}})
    assert withdraw.main([str(lab.kubeconfig)]) == 0
    told = capsys.readouterr().out
    assert f"{recordoned}: our marks are off; the cordon is not ours and stays" in told
    assert foreign not in told
    for one in (held, twice, recordoned, foreign, broken):
        assert marks_of_ours(node(lab, one)) == [], one
        assert bool(node(lab, one)["spec"].get("unschedulable")) == (one in (recordoned, foreign)), one
    assert withdraw.main([str(lab.kubeconfig)]) == 0 and capsys.readouterr().out == ""
    assert withdraw.main(["--all"]) == 2
