"""Incidents as an operator meets them: one fault, one incident, the cause named, and an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.incident_help import SECOND, T0, Life, finding, fleet, gpu

from gpuvigil_collector.incidents import ranking
from gpuvigil_collector.incidents.incident import fingerprint, scope_of
from gpuvigil_detectors.base import Evidence
from gpuvigil_protos.fault_classes import FAULT_CLASSES


def test_a_fact_opens_at_once_resolves_after_clear_and_reopens_under_its_id():
    life = Life()
    lost = finding("gpu_lost", gpu("n3", 5))
    (opened,) = life.tick(0, lost)
    assert opened.what == "opened"
    assert (opened.incident.scope, opened.incident.node, opened.incident.gpus) == ("gpu", "n3", 1)
    assert opened.incident.cause == lost.sentence
    life.hold(1, 10, lost)
    life.hold(10, 39)
    assert life.open == [("gpu_lost", gpu("n3", 5))]
    (resolved,) = life.tick(39)
    assert resolved.what == "resolved" and resolved.incident.resolved_ns == T0 + 39 * SECOND
    assert life.open == []
    (again,) = life.tick(100, finding("gpu_lost", gpu("n3", 5), at=100))
    assert (again.what, again.incident.id, again.incident.opened_ns) == ("reopened", opened.incident.id, T0)


def test_long_after_resolution_the_same_fault_is_a_new_incident_of_the_same_fingerprint():
    life = Life(reopen_within=60)
    (first,) = life.tick(0, finding("disk_full", "n1/filesystem:/"))
    life.hold(1, 40)
    (second,) = life.tick(200, finding("disk_full", "n1/filesystem:/", at=200))
    assert second.what == "opened" and second.incident.id != first.incident.id
    assert second.incident.fingerprint == first.incident.fingerprint


def test_xid_45_follows_79_and_peers_links_go_down_with_the_lost_gpu():
    life = Life()
    lost = finding("gpu_lost", gpu("n1", 2), at=0)
    shadow = finding("xid_application", gpu("n1", 2), at=0.1, severity="info")
    links = [finding("nvlink_down", f"n1/nvlink:GPU-n1-{i}/{i}", at=1) for i in range(4)]
    life.hold(0, 8, lost, shadow, *links)
    assert life.open == [("gpu_lost", gpu("n1", 2))]
    (incident,) = life.tracker.open.values()
    roles = {found.fault_class: incident.role(found) for found in incident.findings}
    assert roles == {"gpu_lost": "cause", "xid_application": "symptom", "nvlink_down": "symptom"}
    assert len(incident.findings) == 6 and incident.findings[0].fault_class == "gpu_lost"


def test_a_symptom_seen_first_waits_and_the_cause_leads():
    life = Life()
    down = finding("nvlink_down", "n1/nvlink:GPU-n1-0/3")
    life.tick(0, down)
    life.tick(1, down)
    assert life.open == []
    life.tick(2, down, finding("gpu_lost", gpu("n1", 2), at=2))
    assert life.open == [("gpu_lost", gpu("n1", 2))]
    assert [what for what, *_ in life.log] == ["opened"]


def test_a_cause_that_comes_late_takes_the_incident_over():
    life = Life()
    down = finding("nvlink_down", "n1/nvlink:GPU-n1-0/3")
    life.hold(0, 6, down)
    assert life.open == [("nvlink_down", "n1/nvlink:GPU-n1-0/3")]
    life.tick(6, down, finding("gpu_lost", gpu("n1", 2), at=6))
    assert life.open == [("gpu_lost", gpu("n1", 2))]
    assert [what for what, *_ in life.log] == ["opened", "cause_changed"]
    (incident,) = life.tracker.open.values()
    assert incident.fingerprint == fingerprint("gpu_lost", gpu("n1", 2)) and incident.scope == "gpu"


def test_two_faults_on_one_node_that_do_not_explain_each_other_are_two_incidents():
    life = Life()
    life.hold(0, 5, finding("ecc_uncorrectable", gpu("n1", 0)), finding("nic_down", "n1/interface:eth0"))
    assert sorted(life.open) == [("ecc_uncorrectable", gpu("n1", 0)), ("nic_down", "n1/interface:eth0")]


def test_a_statistical_finding_is_the_shadow_of_a_fact_on_the_same_gpu_but_not_of_another_gpus():
    life = Life()
    fact = finding("pcie_downgrade", gpu("n1", 0))
    near = finding("gpu_slow", gpu("n1", 0), origin="statistics", detector="forest")
    far = finding("gpu_slow", gpu("n1", 1), origin="statistics", detector="forest")
    life.hold(0, 8, fact, near, far)
    assert sorted(life.open) == [("gpu_slow", gpu("n1", 1)), ("pcie_downgrade", gpu("n1", 0))]


def test_many_silent_agents_are_one_fleet_incident_and_one_is_the_nodes():
    life = Life()
    silent = [finding("monitor_fault", f"n{i}/node", severity="warning", origin="agent") for i in range(5)]
    storm = finding("monitor_fault", "fleet", at=1, origin="agent", rule="fleet_silent")
    life.hold(0, 6, silent[0])
    assert life.open == [("monitor_fault", "n0/node")]
    life.hold(6, 12, storm, *[replace(one, notify=False) for one in silent])
    assert life.open == [("monitor_fault", "fleet")]
    (incident,) = life.tracker.open.values()
    assert (incident.scope, incident.node, incident.gpus) == ("fleet", "", 128)
    assert incident.cause == storm.sentence
    assert [what for what, *_ in life.log] == ["opened", "cause_changed"]


def test_a_count_that_is_short_gives_way_to_the_gpu_that_is_lost():
    life = Life()
    short = finding("gpu_lost", "n1/node", rule="gpu_count")
    life.hold(0, 3, short)
    assert life.open == [("gpu_lost", "n1/node")]
    life.hold(3, 6, short, finding("gpu_lost", gpu("n1", 4), at=3))
    life.hold(6, 9, finding("gpu_lost", gpu("n1", 4), at=3), finding("gpu_lost", gpu("n1", 5), at=6))
    assert sorted(life.open) == [("gpu_lost", gpu("n1", 4)), ("gpu_lost", gpu("n1", 5))]


def test_every_class_has_a_rank():
    causes = ranking.load()
    assert sorted(FAULT_CLASSES, key=causes.rank)[0] == "node_down"
    assert max(map(causes.rank, FAULT_CLASSES)) < len(FAULT_CLASSES)


def test_one_hot_node_is_one_incident_and_two_hot_gpus_are_two():
    hot = Life()
    hot.hold(0, 3, *[finding("thermal", gpu("n1", i)) for i in range(5)])
    assert hot.open == [("thermal", "n1/node")]
    warm = Life()
    warm.hold(0, 3, *[finding("thermal", gpu("n1", i)) for i in range(2)])
    assert len(warm.open) == 2


def test_what_notifies_nobody_opens_nothing_and_serves_as_evidence():
    life = Life()
    app = finding("xid_application", gpu("n1", 0), severity="info", notify=False)
    life.hold(0, 10, app)
    assert life.open == []
    life.tick(10, app, finding("ecc_uncorrectable", gpu("n1", 0), at=10))
    life.hold(11, 60, app)
    assert life.open == [], "evidence alone keeps no incident open"
    (incident,) = life.tracker.resolved.values()
    assert {found.fault_class for found in incident.findings} == {"ecc_uncorrectable", "xid_application"}


def test_a_link_that_went_down_long_before_is_no_symptom_of_the_gpu_lost_later():
    life = Life()
    down = finding("nvlink_down", gpu("n1", 2))
    life.hold(0, 20, down)
    life.hold(20, 25, down, finding("gpu_lost", gpu("n1", 1), at=20))
    assert sorted(life.open) == [("gpu_lost", gpu("n1", 1)), ("nvlink_down", gpu("n1", 2))]


def test_the_switch_speaks_of_the_node_and_the_gpu_of_the_link():
    life = Life()
    switch = finding("nvlink_errors", "n1/node", rule="sxid_20001", origin="kernel_log")
    life.hold(0, 6, switch)
    life.hold(6, 9, switch, finding("nvlink_errors", gpu("n1", 0), at=3))
    assert life.open == [("nvlink_errors", gpu("n1", 0))]


def test_the_cause_keeps_its_sentence_when_graver_words_about_it_follow():
    life = Life()
    first = finding("ecc_uncorrectable", gpu("n1"), at=5, sentence="Xid 48: 1 error")
    life.tick(5, first)
    driver = finding(
        "ecc_uncorrectable", gpu("n1"), at=1, rule="recovery", sentence="the driver wants a reset"
    )
    life.tick(6, replace(first, sentence="Xid 48: 2 errors"), driver)
    assert [one.cause for one in life.tracker.open.values()] == ["Xid 48: 2 errors"]


def test_severity_only_rises_and_its_rise_is_journalled():
    life = Life()
    life.tick(0, finding("disk_full", "n1/filesystem:/", severity="warning"))
    life.tick(1, finding("disk_full", "n1/filesystem:/", severity="critical", rule="r2"))
    life.tick(2, finding("disk_full", "n1/filesystem:/", severity="warning"))
    assert [what for what, *_ in life.log] == ["opened", "severity_raised"]
    assert next(iter(life.tracker.open.values())).severity == "critical"


def test_a_storm_stays_bounded_and_is_counted():
    life = Life(fleet(2000), open_max=50, findings_max=10, resolved_max=20)
    storm = [finding("ecc_uncorrectable", gpu(f"n{i}")) for i in range(200)]
    many = [finding("nic_down", "n1/interface:eth0", rule=f"r{i}") for i in range(40)]
    life.hold(0, 3, *storm, *many)
    assert len(life.tracker.open) == 100, "critical ones have as much room again"
    assert life.tracker.not_opened == 101, "each is counted once, however long it holds"
    assert all(len(one.findings) <= 10 for one in life.tracker.open.values())
    life.hold(3, 40)
    assert len(life.tracker.open) == 0 and len(life.tracker.resolved) == 20


def test_gpu_hours_at_stake_count_the_scope_from_the_cause_on():
    life = Life()
    life.tick(0, finding("driver_hang", "n1/node"))
    (incident,) = life.tracker.open.values()
    assert incident.gpu_hours(T0 + 1800 * SECOND) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("fault_class", "target", "scope"),
    [
        ("nvlink_errors", "n1/nvlink:GPU-1/3", "nvlink"),
        ("pcie_downgrade", "n1/gpu:GPU-1", "pcie"),
        ("gpu_lost", "n1/gpu:GPU-1", "gpu"),
        ("nic_down", "n1/interface:ib0", "ib"),
        ("nic_flap", "n1/interface:eth0", "eth"),
        ("disk_slow", "n1/disk:nvme0n1", "node"),
        ("monitor_fault", "fleet", "fleet"),
    ],
)
def test_scope_words(fault_class, target, scope):
    assert scope_of(fault_class, target) == scope


ENTITIES = [
    gpu("n1", 0),
    gpu("n1", 1),
    gpu("n2", 0),
    "n1/node",
    "n1/nvlink:GPU-n1-0/2",
    "n2/node",
    "n2/disk:sda",
]
FINDINGS = st.lists(
    st.tuples(
        st.sampled_from(sorted(FAULT_CLASSES)), st.sampled_from(ENTITIES), st.booleans(),
        st.sampled_from(["info", "warning", "critical"]), st.sampled_from(["driver", "statistics"]),
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(FINDINGS, min_size=1, max_size=15))
def test_whatever_comes_each_claim_has_one_home_and_all_ends_in_silence(history):
    """Invariants: one open incident a fault, a lead among its members, index and tables agree; an end."""
    life = Life(fleet(4), open_max=20)
    for second, row in enumerate(history):
        found = [
            finding(name, entity, at=second, notify=notify, severity=severity, origin=origin)
            for name, entity, notify, severity, origin in row
        ]
        life.tick(second, *found)
        incidents = list(life.tracker.open.values())
        prints = [one.fingerprint for one in incidents]
        assert len(set(prints)) == len(prints), "one fault has one open incident"
        assert all(one.lead.key in one.members for one in incidents)
        assert {id_ for ids in life.tracker._set._by_node.values() for id_ in ids} == set(life.tracker.open)
        assert not life.tracker.open.keys() & life.tracker.resolved.keys()
    life.hold(len(history), len(history) + 40)
    assert life.open == []


def loop(fault_class, entity, at, **facts):
    evidence = Evidence(facts=tuple(facts.items()))
    return finding(fault_class, entity, at=at, origin="job", severity="warning", evidence=evidence)


def test_a_slow_rank_is_explained_by_its_own_gpu_and_by_no_other():
    hot = finding("thermal", gpu("n1", 3), at=5)
    for own, expected in (("GPU-n1-3", 1), ("GPU-n1-4", 2), ("", 1)):
        slow = loop("straggler", "n1/rank:j/3", 1, gpu=own)
        for order in ((hot, slow), (slow, hot)):
            life = Life()
            life.tick(5, order[0])
            life.tick(8, *order)
            assert len(life.open) == expected, (own, order)
            assert life.open[0 if order[0] is hot or expected == 1 else 1] == ("thermal", gpu("n1", 3))


def test_a_dead_rank_is_explained_by_a_lost_gpu_of_its_job_alone():
    lost = finding("gpu_lost", gpu("n1", 3), at=5)
    for gpus, expected in (("GPU-n1-2,GPU-n1-3", 1), ("GPU-n1-4", 2)):
        dead = loop("process_dead", "n1/rank:j/2", 4, gpu="GPU-n1-2", node_gpus=gpus)
        life = Life()
        life.tick(4, dead)
        life.tick(6, dead, lost)
        assert len(life.open) == expected


@pytest.mark.parametrize(
    ("cause", "symptom"),
    [
        ("pcie_downgrade", "data_stall"), ("nvlink_down", "hang"), ("nic_down", "process_dead"),
        ("nic_flap", "hang"),
    ],
)  # fmt: skip
def test_what_a_broken_part_does_to_the_loop_is_no_incident_of_its_own(cause, symptom):
    part = "n1/interface:ib0" if cause.startswith("nic") else gpu("n1", 3)
    life = Life()
    felt = loop(symptom, "n1/rank:j/3", 1, gpu="GPU-n1-3", node_gpus="GPU-n1-3")
    life.tick(1, felt)
    life.tick(9, felt, finding(cause, part, at=6))
    life.hold(10, 14, felt, finding(cause, part, at=6))
    assert life.open == [(cause, part)]
