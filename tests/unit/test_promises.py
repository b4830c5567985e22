"""docs/promises.md: generated, complete, and naming only tests that exist."""

from __future__ import annotations

import re

import promises
import pytest

IDS = [*(f"R{number}" for number in range(1, 16)), "S1", "S2", "S6", "S8"]


@pytest.mark.parametrize("promise", IDS)
def test_every_promise_has_a_text_and_a_test(promise):
    assert promises.texts()[promise]["text"]
    assert promises.named().get(promise), f"no test is named test_{promise.lower()}_..."


def test_what_is_missing_has_an_owner_and_no_promise_is_without_a_text():
    known = promises.texts()
    assert all(("missing" in one) == ("owner" in one) for one in known.values())
    assert set(promises.named()) <= set(known), "a test names a promise that has no text"


def test_the_committed_table_has_every_promise_and_names_only_tests_that_exist():
    page = promises.TABLE.read_text(encoding="utf-8")
    rows = {
        line.split(" | ")[0].strip("| "): line for line in page.splitlines() if re.match(r"\| [RS]\d", line)
    }
    assert list(rows) == list(promises.texts()), "run `make promises`"
    tests = promises.named()
    for promise, line in rows.items():
        assert set(re.findall(r"`(test_\w+)`", line)) == {name for _, name in tests[promise]}, (
            f"{promise}: run `make promises`"
        )
        assert promises.texts()[promise]["text"] in line


CASES = """<testsuites><testsuite>
<testcase classname="tests.unit.test_x" name="test_r1_one[a]"><properties><property name="n" value="300"/>
</properties></testcase>
<testcase classname="tests.unit.test_x" name="test_r1_one[b]"><properties><property name="n" value="700"/>
<property name="wrong" value="{wrong}"/></properties>{end}</testcase></testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("wrong", "end", "expected"),
    [
        (0, "", "| met: 2 cases passed | 1,000 | 0.003 |  |"),
        (2, '<failure message="x"/>', "| **FAILED**: 1 cases, 1 passed | 1,000, 2 wrong | 0.0063 |  |"),
        (0, '<skipped message="needs_kube: no"/>', "not shown here: 1 cases passed, 1 of 1 tests not run"),
    ],
)
def test_a_row_says_what_the_tests_said(tmp_path, wrong, end, expected):
    file = tmp_path / "junit.xml"
    file.write_text(CASES.format(wrong=wrong, end=end))
    key = ("tests/unit/test_x.py", "test_r1_one")
    line = promises.row("R1", {"text": "calm"}, [key], promises.results([file]))
    assert expected in line, line


def test_a_test_that_was_not_run_is_never_met():
    line = promises.row("R1", {"text": "calm"}, [("tests/unit/test_x.py", "test_r1_one")], {})
    assert "met" not in line and "1 of 1 tests not run" in line
