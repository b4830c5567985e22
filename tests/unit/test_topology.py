"""What belongs to what: events about GPUs that nobody has are the node's."""

from __future__ import annotations

import pytest
from unit.incident_help import T0, fleet

from gpuvigil_detectors.base import FactEvent


@pytest.mark.parametrize(
    ("entity", "placed"),
    [
        ("gpu:GPU-n1-0", "gpu:GPU-n1-0"),
        ("nvlink:GPU-n1-7/3", "nvlink:GPU-n1-7/3"),
        ("gpu:GPU-00001", "node"),
        ("gpu:GPU-n0-0", "node"),
        ("nvlink:GPU-00001/3", "node"),
        ("disk:sda", "disk:sda"),
        ("node", "node"),
    ],
)
def test_an_event_about_a_gpu_that_the_node_does_not_have_is_the_nodes(entity, placed):
    event = FactEvent(node="n1", time_ns=T0, kind="xid", origin="kernel_log", entity=entity, code=79)
    assert fleet().placed(event).entity == placed


def test_a_node_whose_inventory_is_unknown_is_believed():
    event = FactEvent(node="new", time_ns=T0, kind="xid", origin="driver", entity="gpu:GPU-1", code=79)
    assert fleet().placed(event).entity == "gpu:GPU-1"
