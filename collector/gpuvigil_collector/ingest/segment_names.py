"""Names of recording files, which say what each covers.

`metrics-00-000000000007.parquet` is the part of worker 0's flush 7. A merged file is named by the first and
the last flush that it covers, `metrics-00-000000000001-000000000300.parquet`: a part within that range is
superseded, whoever reads the folder leaves it out, and the next start deletes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

KINDS: Final = ("metrics", "events")
_NAME: Final = re.compile(
    r"(?P<kind>metrics|events)-(?P<worker>\d{2})-(?P<first>\d{12})(-(?P<last>\d{12}))?\.parquet\Z"
)


class Name(NamedTuple):
    """What a file's name says."""

    first: int
    last: int
    kind: str
    worker: int
    merged: bool


def parse(path: Path) -> Name | None:
    """Return what the name says, None when it is none of ours."""
    found = _NAME.match(path.name)
    if found is None:
        return None
    first, last = found["first"], found["last"]
    return Name(int(first), int(last or first), found["kind"], int(found["worker"]), last is not None)


def part(kind: str, worker: int, number: int) -> str:
    """Name the file of one flush."""
    return f"{kind}-{worker:02}-{number:012}.parquet"


def merged(kind: str, worker: int, first: int, last: int) -> str:
    """Name the file that takes the place of the parts `first` to `last`."""
    return f"{kind}-{worker:02}-{first:012}-{last:012}.parquet"


def split(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Sort files of ours, oldest first, into those that count and the superseded ones."""
    named = [(name, path) for path in paths if (name := parse(path)) is not None]
    named.sort(key=lambda one: (one[0].first, -one[0].last, one[0].kind))
    covered: dict[tuple[str, int], int] = {}
    counting: list[Path] = []
    superseded: list[Path] = []
    for name, path in named:
        own = name.kind, name.worker
        if name.merged:
            covered[own] = name.last
        hidden = not name.merged and name.first <= covered.get(own, 0)
        (superseded if hidden else counting).append(path)
    return counting, superseded
