"""Votes by name: the tested list of PyOD, imported only when named."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gpuvigil_detectors.votes import TESTED, Vote, VoteError

HEALTHY = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(TESTED))
def test_every_vote_on_the_list_tells_odd_from_ordinary(name):
    pytest.importorskip("pyod")
    vote = Vote(name, seed=1)
    assert np.isnan(vote.score(HEALTHY)).all()
    vote.fit(HEALTHY)
    rows = np.vstack([HEALTHY[:200], HEALTHY[:20] + 8])
    rows[0, 0] = np.nan
    scores = vote.score(rows)
    assert np.isnan(scores[0]) and np.isfinite(scores[1:]).all()
    assert np.median(scores[200:]) > np.quantile(scores[1:200], 0.95)
    again = Vote(name, seed=1)
    again.fit(HEALTHY)
    assert np.array_equal(again.score(rows), scores, equal_nan=True)


def test_another_name_is_refused_with_the_list():
    with pytest.raises(VoteError, match=r"^expected one of copod, ecod, hbos, knn, pca, got 'os'"):
        Vote("os")


def test_constant_columns_do_not_break_a_vote():
    pytest.importorskip("pyod")
    rows = HEALTHY.copy()
    rows[:, 2] = 0.0
    for name in TESTED:
        vote = Vote(name)
        vote.fit(rows)
        assert np.isfinite(vote.score(rows)).all()


def test_pyod_is_imported_only_when_named():
    code = ("import sys; from gpuvigil_detectors.statistical import Statistical; Statistical(); "
            "print([m for m in sys.modules if m.split('.')[0] in ('pyod', 'sklearn', 'torch')])")  # fmt: skip
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          check=True, env={"PYTHONPATH": path})  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_process_that_may_not_compile_is_told_what_to_do(tmp_path):
    pytest.importorskip("pyod")
    code = ("import ctypes, sys; from gpuvigil_collector.__main__ import main; "
            "assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, as systemd sets it\n"
            "sys.exit(main(['--check-config', '--set', 'detection.votes=[\"ecod\"]']))")  # fmt: skip
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          check=False, env={"PYTHONPATH": path, "HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "detection.votes: ecod needs memory" in done.stderr
    assert "MemoryDenyWriteExecute=no" in done.stderr
