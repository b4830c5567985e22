"""When a hang is suspected: asked once a job and interval, its own nodes, and what the incident says."""

from __future__ import annotations

import pytest
from unit.training_job import FakeJob, running_job, told  # noqa: F401 - a fixture

from gpuvigil_collector.config import SaveSettings
from gpuvigil_collector.ingest.frames import Result
from gpuvigil_collector.saves.evidence import EvidenceDesk

WAITS = "distributed_c10d.py:90 all_reduce < c10d_logger.py:83 wrapper < train.py:33 step"


class Play:
    """A job of four ranks on two nodes that stands, its judge and the desk."""

    def __init__(self, job: FakeJob, **settings) -> None:
        self.job, self.sent = job, []
        self.desk = EvidenceDesk(SaveSettings(**settings), self.sent.append)

    def second(self, *results: Result) -> list:
        found = told(self.job.second())
        training = self.job.training
        self.desk.tick(self.job.fleet.now_ns, training.jobs.by_name, training.suspected(), results)
        return found

    def run(self, seconds: int) -> list:
        found: list = []
        for _ in range(seconds):
            found = self.second()
        return found

    def records(self, rank: int, ops: str, stack: str = WAITS) -> None:
        last = ops.split(",", maxsplit=1)[0].split(":")[1]
        self.say(rank, {"source": "records", "stack": stack, "group_0": f"0|{last}||{int(last) - 1}|0-3|tp",
                        "ops_0": ops})  # fmt: skip

    def say(self, rank: int, fields: dict[str, str]) -> None:
        self.job.fleet.event(f"n{rank // 2}", "collectives", f"rank:j/{rank}", origin="job", fields=fields)


def test_a_suspicion_asks_each_node_of_the_job_once_an_interval(job: FakeJob) -> None:
    play = Play(job)
    play.run(5)
    assert not play.sent, "a job that moves"
    job.held[1] = "all alike"
    play.run(15)
    assert not play.sent, "not before it is suspected"
    play.run(5)
    assert [(one.node, one.verb) for one in play.sent] == [("n0", "evidence"), ("n1", "evidence")]
    assert play.sent[0].arguments["job"] == "j" and play.sent[0].deadline_ns > job.fleet.now_ns
    play.run(100)
    assert len(play.sent) == 2
    play.run(30)
    numbers = [int(one.arguments["number"]) for one in play.sent]
    assert len(numbers) == 4 and numbers[2] > numbers[0], "and again after the interval"


def test_a_job_that_heals_and_stands_again_is_not_asked_before_the_interval(job: FakeJob) -> None:
    play = Play(job, evidence_interval=1000)
    for _ in range(3):
        job.held[1] = "all alike"
        play.run(20)
        job.held.clear()
        play.run(5)
    assert len(play.sent) == 2


def test_it_can_be_turned_off_and_a_refusal_ends_nothing(job: FakeJob) -> None:
    off, on = Play(job, evidence=False), Play(job)
    job.held[1] = "all alike"
    off.run(20)
    assert not off.sent
    on.run(3)
    on.second(Result("n0", on.sent[0].id, False, "unknown verb 'evidence'"), Result("n9", "x", True, ""))


def test_what_ranks_tell_when_asked_names_the_one_in_another_op(job: FakeJob) -> None:
    play = Play(job)
    job.held[1] = "all alike"
    play.run(17)
    for rank in (0, 1, 3):
        play.records(rank, "90:41:s:all_reduce:1000:Float,89:40:c:all_reduce:1000:Float")
    play.records(
        2, "90:41:s:all_reduce:999:Float", "distributed_c10d.py:90 all_reduce < train.py:71 evaluate"
    )
    [hang] = play.run(6)
    facts = dict(hang.evidence.facts)
    assert (hang.entity, facts["kind"], hang.severity) == ("n1/rank:j/2", "desync", "critical")
    assert "does all_reduce (999 x Float) where others do all_reduce 41 of group 0 tp (1000" in hang.sentence
    expected = (
        "rank 0, 1, 3 in all_reduce, from train.py:33 step; rank 2 in all_reduce, from train.py:71 evaluate"
    )
    assert facts["stacks"] == expected
    assert facts["outlier"] == "rank 2: distributed_c10d.py:90 all_reduce < train.py:71 evaluate"
    assert facts["records"] == "4 of 4 ranks told their last collectives"


def test_a_verdict_takes_seconds_not_ticks(job: FakeJob) -> None:
    """Each event asks for a tick of its own; five of those are no five looks."""
    play = Play(job)
    job.held[1] = "all alike"
    play.run(15)
    for rank in range(4):
        play.records(rank, f"90:41:s:all_reduce:{1000 + (rank == 2)}:Float")
    found = told(job.second())
    for _ in range(20):
        found = told(job.training.tick(job.fleet.advance(0.01)))
    assert found[0].severity == "warning"
    assert play.run(6)[0].severity == "critical"


@pytest.mark.parametrize(("fields", "words"), [
    ({"state": "S", "stack": "re.py:166 match < data.py:41 load_batch"},
     "its interpreter lock is held, main thread in re.py:166 match"),
    ({"state": "T", "note": "x"}, "it is stopped by a signal, or by a debugger"),
    ({"state": "D", "note": "no stack within 3 s of the signal"}, "in the kernel and cannot be interrupted"),
    ({"state": "S", "note": "the agent may not signal it: Operation not permitted"}, "may not signal it"),
])  # fmt: skip
def test_a_rank_that_does_not_run_shows_why(job: FakeJob, fields: dict[str, str], words: str) -> None:
    play = Play(job)
    job.held[3] = "stopped"
    play.run(17)
    play.say(3, {"source": "signal"} | fields)
    [hang] = play.run(3)
    assert hang.entity == "n1/rank:j/3" and words in hang.sentence
    assert words in dict(hang.evidence.facts)["held"]


def test_what_was_gathered_of_an_earlier_stand_is_not_shown(job: FakeJob) -> None:
    play = Play(job)
    job.held[3] = "stopped"
    play.run(17)
    play.say(3, {"source": "signal", "state": "S", "stack": "re.py:166 match"})
    play.run(2)
    job.held.clear()
    play.run(5)
    job.held[3] = "stopped"
    [hang] = play.run(18)
    facts = dict(hang.evidence.facts)
    assert not {"held", "stacks", "records"} & set(facts) and "re.py" not in hang.sentence


def test_the_last_xid_and_network_events_of_the_culprits_node_are_shown(job: FakeJob) -> None:
    play = Play(job)
    fleet = job.fleet
    fleet.event("n0", "xid", "gpu:GPU-n0-0", code=31)
    fleet.event("n1", "xid", "gpu:GPU-n1-1", code=13)
    fleet.set("interface_carrier_changes_total", "n1/interface:ib0", 4)
    fleet.set("interface_carrier_changes_total", "n0/interface:ib0", 4)
    play.run(30)
    fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79)
    fleet.event(
        "n1", "kernel", text="mlx5_core 0000:3b:00.0: Port module event", fields={"rule": "mlx5_warning"}
    )
    fleet.event("n1", "kernel", text="nvme timeout", fields={"rule": "nvme_timeout"})
    fleet.set("interface_carrier_changes_total", "n1/interface:ib0", 6)
    play.run(10)
    job.held[3] = "stopped"
    [hang] = play.run(17)
    facts = dict(hang.evidence.facts)
    assert facts["last_xid"].startswith("Xid 79 on gpu:GPU-n1-0 of n1, ")
    assert facts["last_xid"].endswith("s before the last step ended; 1 more within 10 min")
    assert facts["last_nic"].startswith("mlx5_core 0000:3b:00.0: Port module event of n1, ")
    assert facts["carrier_changes"] == "n1/interface:ib0 2"
    job.held.clear()
    play.run(700)
    job.held[3] = "stopped"
    [hang] = play.run(17)
    assert not {"last_xid", "last_nic", "carrier_changes"} & set(dict(hang.evidence.facts)), "long ago"


@pytest.mark.parametrize(("code", "entity", "kind"), [
    (79, "n1/rank:j/2", "device_or_transport"), (31, "n0/job:j", "unknown"),
])  # fmt: skip
def test_a_fatal_xid_tells_ranks_apart_that_wait_alike_and_a_program_s_fault_does_not(
    job: FakeJob, code: int, entity: str, kind: str
) -> None:
    play = Play(job)
    job.fleet.event("n1", "xid", "gpu:GPU-n1-0", code=code)
    job.held[2] = "all alike"
    play.run(17)
    for rank in range(4):
        play.records(rank, "90:41:s:all_reduce:1000:Float")
    [hang] = play.run(3)
    assert (hang.entity, dict(hang.evidence.facts)["kind"]) == (entity, kind)
    assert ("hardware fault" in hang.sentence) == (code == 79)
