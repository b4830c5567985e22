"""The demo's scenario: which faults on which nodes, chosen by a seed, as the text of a scenario file.

Faults are of different classes and on different nodes while there are enough; all begin after the warm-up
and leave 60 s to be found. A storm of application Xids must stay silent.
"""

from __future__ import annotations

import random
from typing import Final

_WARM_UP_SECONDS = 52  # from before the fleet starts; statistics are calibrated by then
_SPREAD_SECONDS = 32
_KINDS: Final = (
    "gpu_lost_xid79",
    "gpu_lost_silent",
    "ecc_uncorrectable",
    "row_remap_failure",
    "thermal_throttle",
    "power_brake",
    "nvlink_errors",
    "pcie_downgrade",
    "nic_down",
    "disk_slow",
    "driver_hang",
)
_FAULTS_MAX = 10
_GPU_KINDS: Final = frozenset(_KINDS[:8]) | {"driver_hang"}
_LINKS = 12  # every profile has these


def demo_scenario(seed: int, nodes: int, gpus: int) -> str:
    """Return a scenario's TOML for nodes numbered from 0. Raises ValueError without a node or a GPU.

    One node less than there are gets a hardware fault, so that the storm has a healthy node; on one node
    alone there is one fault and no storm.
    """
    if nodes < 1 or gpus < 1:
        raise ValueError(f"expected at least 1 node and 1 GPU, got {nodes} nodes and {gpus} GPUs")
    chosen = random.Random(seed)
    kinds = chosen.sample(_KINDS, len(_KINDS))[:_FAULTS_MAX]
    places = chosen.sample(range(nodes), nodes)
    hit = places[: max(1, min(len(kinds), nodes - 1))]
    step = _SPREAD_SECONDS / len(hit)
    tables = ["version = 1", f'title = "demo, seed {seed}, {nodes} nodes of {gpus} GPUs"']
    for place, (kind, node) in enumerate(zip(kinds, hit, strict=False)):
        at = _WARM_UP_SECONDS + place * step + chosen.uniform(0, step)
        tables.append(_table(kind, node, at, _parameters(kind, gpus, chosen)))
    for node in places[len(hit) :][:3]:
        at = _WARM_UP_SECONDS + _SPREAD_SECONDS / 2
        tables.append(_table("xid_application_storm", node, at, []))
    return "\n".join(tables) + "\n"


def _parameters(kind: str, gpus: int, chosen: random.Random) -> list[str]:
    rows = [f"gpu = {chosen.randrange(gpus)}"] if kind in _GPU_KINDS else []
    if kind == "ecc_uncorrectable":
        rows.append(f"xid = {chosen.choice((48, 94, 95))}")
    if kind.startswith("nvlink"):
        rows.append(f"link = {chosen.randrange(_LINKS)}")
    if kind.startswith("nic"):
        rows.append(f'interface = "ib{chosen.randrange(min(8, gpus))}"')
    return rows


def _table(kind: str, node: int, at: float, rows: list[str]) -> str:
    return "\n".join(["", "[[fault]]", f'kind = "{kind}"', f"node = {node}", f'at = "{at:.2f}s"', *rows])
