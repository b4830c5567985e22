"""GPUs in Slurm's GRES texts: `gpu:h100:8(S:0-1)` of a node, `gpu:h100:4(IDX:0-3)` of a job on one node.

The indices are Slurm's (the order of gres.conf): NVML's, where AutoDetect=nvml is set or the files are listed
in order.
"""

from __future__ import annotations

import re
from typing import Final

_GPU: Final = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d{1,4})(?:\((?:IDX|S):([0-9,N/A-]+)\))?")
_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
INDEX_MAX: Final = 1024


def count(gres: str) -> int:
    """Return how many GPUs a GRES text names."""
    return sum(int(found[1]) for found in _GPU.finditer(gres))


def indices(gres: str) -> tuple[int, ...]:
    """Return the indices of the GPUs that a job has on one node; () where Slurm does not say."""
    found: set[int] = set()
    for each in _GPU.finditer(gres):
        for first, last in _RANGE.findall(each[2] or ""):
            found.update(range(int(first), min(int(last or first), INDEX_MAX) + 1))
    return tuple(sorted(found))
