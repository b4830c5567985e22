"""How the suites run side by side (`-n`, pytest-xdist): files whole, Slurm on one worker, some alone.

Most of a run is waiting for servers, so several workers share a machine well. A test marked `alone` judges
what a busy machine would bend (a false alarm of the product's own demo): it waits until nothing else runs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

FIRST: Final = ("slurm", "repair", "kube", "integration", "contract", "sim/")
"""Words of a path, long files first: no worker ends with a long one while the others idle."""
LOCKS: Final = pytest.StashKey[TemporaryDirectory[str]]()


class ByFile(LoadScopeScheduling):
    """Gives out whole files, and the tests of the one Slurm server as if they were one file."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "slurm" if path.startswith("tests/integration/") and "slurm" in path else path


class SideBySide:
    """The hooks of one run, controller and workers alike."""

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        """Take our order of files rather than "most tests first"."""
        config.option.loadscopereorder = False
        return ByFile(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the locks lie."""
        if LOCKS not in node.config.stash:
            node.config.stash[LOCKS] = TemporaryDirectory(prefix="gpuvigil-tests-")
        node.workerinput["locks"] = node.config.stash[LOCKS].name

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the files that wait longest first."""
        items.sort(key=lambda item: _turn(item.nodeid))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let a test marked `alone` run while no other worker runs one: the wait is outside its timeout."""
        if (worker := getattr(item.config, "workerinput", None)) is None:
            return (yield)
        with _machine(Path(worker["locks"]), alone=item.get_closest_marker("alone") is not None):
            return (yield)


def _turn(nodeid: str) -> int:
    path = nodeid.partition("::")[0]
    return next((at for at, word in enumerate(FIRST) if word in path), len(FIRST))


@contextmanager
def _machine(locks: Path, *, alone: bool) -> Iterator[None]:
    """Hold the machine, shared or alone. Who waits for it alone holds the gate: none passes it by."""
    with (locks / "gate").open("w") as gate, (locks / "machine").open("w") as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # a child that was forked may hold the file open still
