"""Prolog, epilog and health check: exit 0 unless an authorised, signed, fresh verdict of the node says no."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from integration.slurm_actions import action, actuator
from integration.slurm_lab import slurm_lab, until
from integration.slurm_verdicts import VerdictNode

from gpuvigil_agent import verdict_file

pytestmark = pytest.mark.needs_slurm


@pytest.fixture
def node(tmp_path: Path) -> VerdictNode:
    return VerdictNode(tmp_path)


def test_no_verdict_goes_on(node: VerdictNode) -> None:
    assert node.run().returncode == 0 and node.counts() == {"missing": 1}


def test_a_verdict_refuses_where_it_is_meant_to(node: VerdictNode) -> None:
    node.put(node.text(at=("prolog", "health")))
    for place in ("prolog_slurmd", ""):
        ended = node.run(place)
        assert ended.returncode == 1 and "gpu 3 fell off the bus" in ended.stderr and "act-1" in ended.stderr
    assert node.counts() == {}
    assert node.run("epilog_slurmd").returncode == 0 and node.counts() == {"other_place": 1}
    verdict_file.clear(node.folder)
    assert node.run().returncode == 0 and node.counts()["missing"] == 1
    assert list(node.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda n: n.put(n.text(expires_s=int(time.time()) - 1)), "stale"),
        (lambda n: n.put(n.text(boot="0" * 36)), "stale"),
        (lambda n: n.put(n.text(node="gn2")), "other_node"),
        (lambda n: n.put(n.text(), Ed25519PrivateKey.generate().sign(n.text())), "forged"),
        (lambda n: n.put(n.text(), bytes(64)), "forged"),
        (lambda n: n.put(n.text().replace(b"gpu 3", b"gpu 4"), n.private.sign(n.text())), "forged"),
        (lambda n: n.put(n.text() + b"more lines\n"), "malformed"),
        (lambda n: n.put(n.text().replace(b"verdict 1", b"verdict 2")), "malformed"),
        (lambda n: n.put(n.text().replace(b"expires 1", b"expires -1")), "malformed"),
        (lambda n: n.put(n.text().replace(b"expires 1", b"expires 9999999999991")), "malformed"),
        (lambda n: n.put(n.text().replace(b"expires 1", b"expires 3")), "malformed"),
        (lambda n: n.put(b"\0" * 2000), "malformed"),
        (lambda n: n.put(n.text().replace(b"action act-1\n", b"")), "malformed"),
        (lambda n: (n.put(n.text()), n.key.unlink()), "no_key"),
        (lambda n: (n.put(n.text()), n.key.write_text("no key")), "forged"),
        (lambda n: (n.put(n.text()), (n.folder / "current/signature").unlink()), "missing"),
        (
            lambda n: (n.put(n.text()), (n.folder / "current/text").write_bytes(b"x" * 10_000_000)),
            "malformed",
        ),
    ],
)
def test_anything_less_goes_on_and_is_counted(node: VerdictNode, change: object, why: str) -> None:
    change(node)  # type: ignore[operator]
    ended = node.run()
    assert (ended.returncode, node.counts()) == (0, {why: 1}), ended.stderr
    assert [each.name for each in node.own.iterdir()] == ["counts"], "no copy is left"


def test_any_changed_byte_goes_on(node: VerdictNode) -> None:
    text = node.text()
    signature = node.private.sign(text)
    rng = random.Random(7)
    for _ in range(150):
        both = bytearray(text + signature)
        both[rng.randrange(len(both))] ^= 1 << rng.randrange(8)
        node.put(bytes(both[: len(text)]), bytes(both[len(text) :]))
        assert node.run().returncode == 0
    node.put(text, signature)
    assert node.run().returncode == 1


def test_hostile_text_starts_nothing(
    node: VerdictNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even signed: what a verdict says is text, never a command."""
    trap = tmp_path / "trap"
    monkeypatch.chdir(tmp_path)
    reason = "$(touch trap) `touch trap`; touch trap %s %n * ' \" \\"
    node.put(node.text(reason=reason))
    ended = node.run()
    assert ended.returncode == 1 and reason in ended.stderr
    assert not trap.exists() and not list(tmp_path.rglob("trap"))


@pytest.mark.parametrize("field", ["node", "boot", "action", "at", "expires_s", "reason"])
def test_what_cannot_be_read_back_is_not_written(node: VerdictNode, field: str) -> None:
    bad = {"at": (), "expires_s": int(time.time()) + 99999}.get(field, "a b\nc")
    with pytest.raises(ValueError, match=field):
        node.text(**{field: bad})


def test_real_prolog_epilog_and_health_check(tmp_path_factory: pytest.TempPathFactory) -> None:
    """slurmd runs the script: without a verdict jobs run; a refusal does what the docs say."""
    folder = tmp_path_factory.mktemp("verdict")
    folder.chmod(0o755)
    node = VerdictNode(folder)
    places = "\n".join(f"{key}={node.script}" for key in ("Prolog", "Epilog", "HealthCheckProgram"))
    with slurm_lab(f"{places}\nPrologFlags=Alloc\nHealthCheckInterval=5") as lab:
        hands = actuator(lab)
        job = lab.submit("sleep 1", "--nodelist=gn1")
        until(lambda: lab.job(job)["job_state"] == "COMPLETED", "a job runs and ends")
        until(lambda: node.counts().get("missing", 0) >= 4, "prolog, epilog and health checks went on")

        node.put(node.text(at=("health",)))
        until(lambda: "health refuses work on gn1" in lab.log("gn1"), "slurmd logs what the check says")
        job = lab.submit("sleep 1", "--nodelist=gn1")
        until(lambda: lab.job(job)["job_state"] == "COMPLETED", "which in Slurm holds nothing up by itself")

        node.put(node.text(at=("prolog",)))
        job = lab.submit("sleep 30", "--nodelist=gn1")
        until(lambda: lab.node("gn1")["reason"] == "Prolog error", "slurmd refuses the job, Slurm drains", 60)
        assert hands.look(action("release")).state == "foreign", "that drain is Slurm's, not ours"
        until(lambda: lab.job(job)["state_reason"] == "JobHeldUser", "and it holds the job")
