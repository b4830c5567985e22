"""R1, R11: storms, one domain's fault and blind spots: where many ask at once, nobody acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.safety_world import DAY, HOUR, MINUTE, NOW, ask, changed, fleet, judge, node, past, state


@pytest.mark.parametrize(
    ("size", "silent", "blind"), [(3, 1, 0), (3, 2, 1), (20, 3, 0), (20, 4, 1), (100, 19, 0), (100, 20, 1)]
)
def test_r11_a_blind_spot_stops_everything_but_words(size, silent, blind):
    of = state(fleet(size) | {f"n{i}": node(f"n{i}", silent=True) for i in range(size - silent, size)})
    assert judge(of, ask()).gate == ("blind spot" if blind else "")
    assert judge(of, ask("notify")).allowed
    under = {
        f"n{i}": node(f"n{i}", silent=True, maintenance="powered down") for i in range(size - silent, size)
    }
    assert judge(state(fleet(size) | under), ask()).allowed


def test_r11_a_silent_node_is_our_fault_until_a_second_path_agrees():
    assert judge(changed(state(), "n0", silent=True), ask()).gate == "blind spot"
    assert judge(changed(state(), "n0", silent=True, dead=True), ask()).allowed
    assert judge(changed(state(), "n0", dead=True), ask()).gate == "blind spot"


def actionable(*numbers, ago=MINUTE):
    return tuple((f"n{i}", NOW - ago) for i in numbers)


def test_r1_a_storm_trips_the_breaker_and_it_stays():
    calm, storm = judge(replace(state(), actionable=actionable(0, 2)), ask()), actionable(0, 2, 4, 0, 2)
    assert calm.allowed and not calm.trips_breaker
    verdict = judge(replace(state(), actionable=storm), ask())
    assert verdict.gate == "storm breaker" and verdict.trips_breaker
    latched = judge(replace(state(), breaker_ns=NOW - DAY), ask())
    assert latched.gate == "storm breaker" and not latched.trips_breaker
    assert judge(replace(state(), actionable=storm), ask("notify")).trips_breaker
    assert judge(replace(state(), actionable=storm), ask("hold", "n99")).trips_breaker
    assert judge(replace(state(), actionable=actionable(0, 2, 4, ago=10 * MINUTE)), ask()).allowed
    assert judge(replace(state(), actionable=actionable(0, 2, 4, ago=10 * MINUTE - 1)), ask()).trips_breaker


def test_r1_the_storms_share_is_of_the_inventory_and_maintenance_is_no_storm():
    big = fleet(50, nodes_a_rack=1)
    assert judge(state(big, actionable=actionable(1, 2, 3, 4)), ask()).allowed
    assert judge(state(big, actionable=actionable(1, 2, 3, 4, 5)), ask()).trips_breaker
    quiet = big | {"n5": node("n5", maintenance="bob", partition="train")}
    assert judge(state(quiet, actionable=actionable(1, 2, 3, 4, 5)), ask()).allowed


def test_r1_one_domains_fault_goes_to_a_person_and_trips_nothing():
    rack = state(fleet(40, nodes_a_rack=8), actionable=actionable(0, 1, 2))
    verdict = judge(rack, ask())
    assert verdict.gate == "storm breaker" and not verdict.trips_breaker
    assert judge(rack, ask("hold", "n39")).allowed
    assert judge(state(fleet(40, nodes_a_rack=40), actionable=actionable(0, 1, 2)), ask()).allowed
    assert (
        judge(state(fleet(40, nodes_a_rack=40), actionable=actionable(0, 1, 2, 3)), ask()).gate
        == "storm breaker"
    )


def test_windows_are_longer_by_the_clocks_leap():
    of = replace(state(), past=(past("hold", "n1", 2 * HOUR, open=False),))
    assert judge(of, ask()).allowed
    assert judge(replace(of, jumped_ns=2 * HOUR), ask()).gate == "budgets"
    assert judge(replace(of, jumped_ns=-1), ask()).gate == "budgets"
