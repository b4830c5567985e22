"""What a silence covers: nodes and incidents, patterns that are hostile, times."""

from __future__ import annotations

import time

import pytest
from integration.alert_stack import incident

from gpuvigil_collector.alerting.alert import labels_of
from gpuvigil_collector.alerting.client import Matcher, SilenceRow
from gpuvigil_collector.alerting.silences import Cover, read_rows

NOW = 1_800_000_000 * 10**9


def row(*matchers, starts="2020-01-01T00:00:00Z", ends="2100-01-01T00:00:00Z", **more):
    conditions = [Matcher(name=n, value=v, is_regex=r, is_equal=e) for n, v, r, e in matchers]
    return SilenceRow(id="s", matchers=conditions, starts_at=starts, ends_at=ends, created_by="ann", **more)


def covers(node, *matchers, **more):
    return bool(Cover(read_rows([row(*matchers, **more)], NOW), {"cluster": "a"}).node(node, NOW))


@pytest.mark.parametrize(
    ("matchers", "node", "covered"),
    [
        ([("node", "n1", False, True)], "n1", True),
        ([("node", "n1", False, True)], "n10", False),
        ([("node", "n", True, True)], "n1", False),
        ([("node", "n1.*", True, True)], "n10", True),
        ([("node", "n1", False, False)], "n2", True),
        ([("cluster", "a", False, True)], "n1", True),
        ([("cluster", "b", False, True)], "n1", False),
        ([("node", "n1", False, True), ("cluster", "b", False, True)], "n1", False),
        ([("node", "n1", False, True), ("severity", "critical|warning|info", True, True)], "n1", True),
        ([("node", "n1", False, True), ("severity", "warning", False, True)], "n1", False),
        ([("node", "n1", False, True), ("alertname", "Gpuvigil.+", True, True)], "n1", True),
        ([("node", "n1", False, True), ("alertname", "GpuvigilGpuSlow", False, True)], "n1", False),
        ([("node", "n1", False, True), ("alertname", "GpuvigilTestAlert", False, False)], "n1", True),
        ([("node", "n1", False, True), ("class", "thermal", False, False)], "n1", False),
        ([("node", "n1", False, True), ("uuid", "GPU-1", False, True)], "n1", False),
        ([("node", "n1", False, True), ("entity", ".*", True, True)], "n1", True),
        ([("node", "n1", False, True), ("synthetic", "true", False, True)], "n1", False),
        ([("node", "n1", False, True), ("rack", "", False, True)], "n1", True),
        ([("node", "n1", False, True), ("rack", "r1", False, True)], "n1", False),
        ([("alertname", "GpuvigilWatchdog", False, True)], "n1", False),
    ],
)
def test_a_node_is_covered_where_every_alert_of_it_would_be(matchers, node, covered):
    assert covers(node, *matchers) is covered


def test_one_class_silenced_covers_that_incident_alone():
    cover = Cover(read_rows([row(("node", "n1", False, True), ("class", "thermal", False, True))], NOW), {})
    hot, lost = incident("n1", "thermal"), incident("n1", "gpu_lost")
    assert cover.alert(labels_of(hot, {}), NOW) and not cover.alert(labels_of(lost, {}), NOW)
    assert not cover.node("n1", NOW)


def test_times_are_looked_at_with_each_question():
    later = row(("node", "n1", False, True), starts="2027-01-15T08:00:10Z", ends="2027-01-15T08:00:20Z")
    cover = Cover(read_rows([later], NOW), {})
    assert [bool(cover.node("n1", NOW + s * 10**9)) for s in (0, 9, 10, 19, 20)] == [0, 0, 1, 1, 0]
    assert read_rows([row(("node", "n1", False, True), ends="2020-01-02T00:00:00Z")], NOW) == []
    assert read_rows([row(("node", "n1", False, True), status={"state": "expired"})], NOW) == []


def test_a_pattern_that_would_take_for_ever_does_not():
    start = time.monotonic()
    assert not covers("a" * 200 + "!", ("node", "(a*)*(a|aa)+" * 20 + "b", True, True))
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("pattern", ["(", "x" * 5000, "(?P<n>a)(?P=n)", "((a{1000}){1000})"])
def test_what_cannot_be_read_silences_rather_than_not_and_says_so(pattern):
    (silence,) = read_rows([row(("node", pattern, True, True), comment="\x1b[2J")], NOW)
    assert silence.covers_node("n1", {})
    assert "cannot be read" in silence.reason and silence.reason.isprintable()


def test_a_silence_whose_times_are_nonsense_holds():
    assert covers("n1", ("node", "n1", False, True), starts="soon", ends="never")
