"""Servers that are started once for all tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.slurm_lab import SlurmLab, slurm_lab


@pytest.fixture(scope="session")
def _slurm_server() -> Iterator[SlurmLab]:
    with slurm_lab() as server:
        yield server


@pytest.fixture
def slurm(_slurm_server: SlurmLab) -> Iterator[SlurmLab]:
    """A real Slurm of four idle nodes (mark needs_slurm); what a test leaves is taken back after it."""
    yield _slurm_server
    _slurm_server.clean()
