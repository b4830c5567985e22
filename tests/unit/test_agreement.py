"""Ranks agree on one step to act at, whatever reaches whom when, in any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil.agreement import Agreement, Peers


class Network:
    """Reductions of all ranks in their order: a wait before every rank has started it would be a deadlock."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.rounds: list[dict[int, int]] = []

    def reduce_of(self, rank):
        turn = iter(range(10**9))

        def reduce(seen):
            number = next(turn)
            while len(self.rounds) <= number:
                self.rounds.append({})
            self.rounds[number][rank] = seen

            def wait():
                assert len(self.rounds[number]) == self.ranks, "deadlock: a rank waits for one that is later"
                return max(self.rounds[number].values())

            return wait

        return reduce


@given(
    ranks=st.integers(1, 6), every=st.integers(1, 8),
    arrivals=st.lists(st.lists(st.integers(0, 60), min_size=6, max_size=6), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_all_ranks_act_at_the_same_steps(ranks, every, arrivals, order):
    """arrivals[k][rank]: after how many steps request k + 1 reaches a rank; requests overtake nothing."""
    network = Network(ranks)
    agreements = [Agreement(network.reduce_of(rank), every) for rank in range(ranks)]
    acted: list[list[int]] = [[] for _ in range(ranks)]
    last = max(max(row) for row in arrivals) + 3 * every + 1
    for step in range(last):
        turn = list(range(ranks))
        order.shuffle(turn)  # a synchronous loop: all end a step before any ends the next
        for rank in turn:
            seen = max((k + 1 for k, row in enumerate(arrivals) if row[rank] <= step), default=0)
            if agreements[rank].step(seen):
                acted[rank].append(step)
    assert all(steps == acted[0] for steps in acted)
    assert acted[0], "a request that reached anyone is acted on"
    first = min(min(row[:ranks]) for row in arrivals)
    assert acted[0][0] <= first + 2 * every
    assert all(agreement.done == len(arrivals) for agreement in agreements)


def test_without_a_request_nobody_acts_and_the_interval_must_make_sense():
    agreement = Agreement(Peers(1.0).reduce, 3)
    assert not any(agreement.step(0) for _ in range(100))
    with pytest.raises(ValueError, match="every"):
        Agreement(Peers(1.0).reduce, 0)


def test_alone_a_request_is_acted_on_once():
    agreement = Agreement(Peers(1.0).reduce, 2)
    acted = [step for step in range(20) if agreement.step(7 if step >= 5 else 0)]
    assert acted == [7]
