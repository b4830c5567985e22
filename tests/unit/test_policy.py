"""Policy files: the default is whole and careful; a bad one is refused with the place and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuvigil_collector import policy
from gpuvigil_collector.action import HARMLESS
from gpuvigil_protos.fault_classes import FAULT_CLASSES
from gpuvigil_protos.settings import ConfigError


def load(tmp_path: Path, text: str) -> policy.Policy:
    file = tmp_path / "site.toml"
    file.write_text(text)
    return policy.load(file)


def kinds(found: policy.Policy, fault_class: str, severity: str = "critical") -> list[str]:
    return [step.do for step in found.playbook[found.playbook_for(fault_class, severity)].steps]  # type: ignore[arg-type]


def test_every_class_has_a_row_with_its_reason() -> None:
    found = policy.load()
    assert set(found.class_) == set(FAULT_CLASSES)
    assert all(len(row.reason) > 20 for row in found.class_.values())
    assert all(len(book.reason) > 20 for book in found.playbook.values())


@pytest.mark.parametrize("name", sorted(policy.NEVER_HOLD | {"straggler", "loss_fault", "data_stall", "oom"}))
def test_what_no_machine_is_guilty_of_touches_no_machine(name: str) -> None:
    assert set(kinds(policy.load(), name)) <= HARMLESS


def test_a_gpu_that_is_lost_saves_holds_moves_reboots_proves_and_returns() -> None:
    assert kinds(policy.load(), "gpu_lost") == [
        "capture_evidence", "checkpoint", "hold", "move_job", "reboot", "validate", "release",
    ]  # fmt: skip


def test_a_warning_of_a_class_that_acts_on_critical_tells_people() -> None:
    assert kinds(policy.load(), "thermal", "warning") == ["notify"]
    assert "hold" in kinds(policy.load(), "thermal", "critical")


def test_a_site_replaces_one_class_and_one_partition(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        'version = 1\n[class.thermal]\nplaybook = "tell"\nreason = "our hall is hot in August"\n'
        '[partition.debug.class.gpu_lost]\nplaybook = "tell"\nreason = "nobody trains there"\n',
    )
    assert found.playbook_for("thermal", "critical") == "tell"
    assert found.playbook_for("gpu_lost", "critical") == "move_and_reboot"
    assert found.playbook_for("gpu_lost", "critical", "debug") == "tell"
    changed = policy.differences(policy.load(), found)
    assert [(partition, name) for partition, name, _, _ in changed] == [
        ("", "thermal"),
        ("debug", "gpu_lost"),
    ]


def book(*steps: str) -> str:
    """A site's playbook `mine` with these steps."""
    return f'[playbook.mine]\nreason = "ours"\nsteps = [{", ".join(steps)}]\n'


HOLD = '{ do = "hold", within = "1min" }'
EVIDENCE = '{ do = "capture_evidence", within = "30s" }'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[class.gpu_lots]\nplaybook = "tell"\nreason = "x"',
            'unknown class "gpu_lots"; did you mean "gpu_lost"?',
        ),
        ('[class.thermal]\nplaybook = "tel"\nreason = "x"', 'unknown playbook "tel"; did you mean "tell"?'),
        ('[class.congestion]\nplaybook = "hold_after_job"\nreason = "x"', "no machine's fault"),
        (
            '[partition.a.class.monitor_fault]\nplaybook = "move_and_reset"\nreason = "x"',
            "no machine's fault",
        ),
        ("[class]\nthermal = 3", "class"),
        ("playbook = 3", "playbook: expected a table, got int"),
        ("[clas.thermal]", 'unknown key "clas"; did you mean "class"?'),
        ("version = 2", "version"),
        (book(), "expected 1 to 20 steps, got 0"),
        (book(HOLD), "expected capture_evidence as the first step"),
        (book(EVIDENCE, '{ do = "reboot", within = "1h" }'), "expected a hold before reboot"),
        (
            book(EVIDENCE, HOLD, '{ do = "reboot", within = "1h" }'),
            'expected "idle" for reboot',
        ),
        (
            book(EVIDENCE, HOLD, '{ do = "release", within = "1min" }'),
            "expected validate before release",
        ),
        (book('{ do = "notify", within = "-1s" }'), "expected a duration with its unit"),
        (book('{ do = "notify", within = "0s" }'), "expected more than 0"),
        (book('{ do = "notify", within = "8d" }'), 'at most "7d"'),
        (book('{ do = "notify", within = "1min", failed = "minee" }'), 'did you mean "mine"?'),
        (book('{ do = "explode", within = "1min" }'), "explode"),
        (
            book('{ do = "notify", within = "1min", failed = "two" }')
            + '[playbook.two]\nreason = "r"\nsteps = [{ do = "notify", within = "1min", failed = "mine" }]\n',
            "expected no way back to itself",
        ),
        (
            book('{ do = "notify", within = "1min", failed = "move_and_reset" }').replace(".mine", ".quiet")
            + '[class.workload_imbalance]\nplaybook = "quiet"\nreason = "x"',
            "in move_and_reset",
        ),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_with_place_and_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
