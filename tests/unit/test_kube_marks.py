"""Properties of our marks: a release gives back what the hold found, whatever others did besides."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_collector.kube import marks
from gpuvigil_collector.kube.api import KubeError
from gpuvigil_collector.kube.objects import Node

KEYS = st.sampled_from(["a.io/x", "b.io/y", "node.kubernetes.io/not-ready", "c", marks.TAINT_KEY])
TAINTS = st.lists(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "effect": st.sampled_from(["NoSchedule", "NoExecute", "PreferNoSchedule"]),
            "value": st.sampled_from(["", "held", "other"]),
        }
    ),
    max_size=4,
    unique_by=lambda taint: (taint["key"], taint["effect"]),
)
OURS = [{"manager": "gpuvigil", "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}]
INCIDENTS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,20}\Z")


def node(taints: list[dict[str, str]], cordoned: bool, annotations: dict[str, str]) -> dict[str, Any]:
    meta = {"name": "n1", "resourceVersion": "7", "annotations": annotations, "managedFields": []}
    return {"metadata": meta, "spec": {"taints": taints, "unschedulable": cordoned}}


def decoded(raw: dict[str, Any]) -> Node:
    return msgspec.convert(raw, Node)


def merged(target: Any, patch: Any) -> Any:
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def entry(incident: str = "I1", generation: int = 1) -> marks.Held:
    return marks.new_entry(
        by="c", incident=incident, action="a", reason="r", generation=generation, now_ns=10**18
    )


def hold(raw: dict[str, Any], one: marks.Held) -> dict[str, Any]:
    found: dict[str, Any] = merged(raw, marks.hold_patch(decoded(raw), one))
    found["metadata"]["managedFields"] = OURS
    return found


@given(TAINTS, st.dictionaries(st.sampled_from(["team", "note"]), st.text(max_size=5)))
def test_release_gives_back_what_the_hold_found(taints: list[dict[str, str]], notes: dict[str, str]) -> None:
    before = node(taints, False, notes)
    if marks.standing(decoded(before)) != "none" or marks.tainted(decoded(before)):
        return
    held = hold(before, entry())
    assert marks.standing(decoded(held)) == "ours"
    after = merged(held, marks.release_patch(decoded(held), "I1", 1))
    assert after["metadata"]["annotations"] == notes
    left = [(t["key"], t["effect"], t.get("value", "")) for t in after["spec"].get("taints", [])]
    assert left == [(t["key"], t["effect"], t["value"]) for t in taints]
    assert not after["spec"].get("unschedulable")


@given(st.lists(INCIDENTS, min_size=1, max_size=6, unique=True), st.randoms())
def test_r6_the_last_incident_gives_the_node_back(incidents: list[str], rng: Any) -> None:
    raw = node([], False, {})
    for one in incidents:
        raw = hold(raw, entry(one))
    for count, one in enumerate(rng.sample(incidents, len(incidents)), 1):
        raw = merged(raw, marks.release_patch(decoded(raw), one, 1))
        raw["metadata"]["managedFields"] = OURS
        last = count == len(incidents)
        assert marks.standing(decoded(raw)) == ("none" if last else "ours")


@given(st.dictionaries(st.sampled_from(marks.ANNOTATIONS), st.text(max_size=40)), TAINTS, st.booleans())
def test_r5_any_annotations_are_read_or_refused(
    said: dict[str, str], taints: list[dict[str, str]], cordoned: bool
) -> None:
    """Whatever is written there: a state, or a clear error; never ours without cordon and taint."""
    found = decoded(node(taints, cordoned, said))
    try:
        state = marks.standing(found)
    except KubeError as error:
        assert "expected" in str(error)
        return
    if state == "ours":
        assert found.spec.unschedulable and marks.tainted(found) and marks.held(found)


@pytest.mark.parametrize("who", [[], OURS * 2, [*OURS, {**OURS[0], "manager": "kubectl"}],
                                 [{**OURS[0], "manager": "kubectl"}]])  # fmt: skip
def test_r6_a_cordon_is_ours_only_when_nobody_else_set_it(who: list[dict[str, Any]]) -> None:
    raw = hold(node([], False, {}), entry())
    raw["metadata"]["managedFields"] = who
    change = marks.release_patch(decoded(raw), "I1", 1)
    assert ("unschedulable" in change["spec"]) == (who == OURS * 2)


@pytest.mark.parametrize("incident", ["", "*", "a b", "a,b", "x" * 129, "\x1b[31m"])
def test_r13_no_incident_no_hold(incident: str) -> None:
    with pytest.raises(KubeError, match="incident"):
        marks.hold_patch(decoded(node([], False, {})), entry(incident))
