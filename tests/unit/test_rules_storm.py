"""A storm: hundreds of GPUs in fault at once. Nothing is left out, old words are renewed, all of it ends."""

from __future__ import annotations

from unit.fake_snapshot import SECOND, Fleet

from gpuvigil_detectors.rules import Rules

GPUS = 1100  # more than one tick words anew
WORDS = {"gpu_row_remap_failure": 1.0, "gpu_recovery_action": 2.0}


def _storm():
    fleet, rules = Fleet(keep=2), Rules()
    names = [fleet.gpu("n1", number) for number in range(GPUS)]
    for name in names:
        for metric in WORDS:
            fleet.set(metric, name, 0.0)
    rules.tick(fleet.advance())
    for name in names:
        for metric, value in WORDS.items():
            fleet.set(metric, name, value)
    return fleet, rules, names


def test_every_gpu_is_told_of_every_tick_and_no_word_grows_old():
    fleet, rules, names = _storm()
    for tick in range(8):
        found = rules.tick(fleet.advance())
        for rule in ("row_remap_failure", "recovery_action"):
            told = [finding for finding in found if finding.rule == rule]
            assert sorted(finding.entity for finding in told) == sorted(names), (rule, tick)
            assert min(finding.end_ns for finding in told) >= fleet.now_ns - 3 * SECOND


def test_the_driver_s_new_word_is_told_at_once_and_an_end_is_an_end():
    fleet, rules, names = _storm()
    for _ in range(3):
        rules.tick(fleet.advance())
    fleet.set("gpu_recovery_action", names[7], 1.0)
    found = rules.tick(fleet.advance())
    (told,) = [f for f in found if f.rule == "recovery_action" and f.entity == names[7]]
    assert told.evidence.observed == 1.0
    for name in names:
        fleet.set("gpu_recovery_action", name, 0.0)
    found = rules.tick(fleet.advance())
    assert not [finding for finding in found if finding.rule == "recovery_action"]
