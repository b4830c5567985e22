"""Write docs/promises.md: each promise, the tests named after it, what they said, n and the 95 % bound.

    python tests/promises.py tests                 prints the node ids of the tests that name a promise
    python tests/promises.py write RESULTS.xml...  writes the table from pytest's junit files

A test is a promise's when its name says so (`test_r1_...`, `test_r1_r2_...`). n and wrong are what the tests
recorded (`record_property`); texts and what is not met are in promises.toml.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from bench.intervals import upper_bound

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT / "tests/promises.toml"
TABLE = ROOT / "docs/promises.md"
IDS = re.compile(r"test_((?:[rs]\d+_)+)")
HEAD = """\
# Promises and how they stand

Written by `make promises` from the tests' own results: not edited by hand. A promise is proven by the
tests that carry its id. *met*: all of them passed and nothing is known to be missing; *partly*: they
passed, and the last column says what is missing and which part of the project owes it; *not shown here*:
some were not run, or the machine lacked what they need. n is the most trials that one of its tests
counted, with how many went wrong among them; the bound is the highest rate of failures that this n
leaves possible with 95 % confidence.
"""


@dataclass(slots=True)
class Told:
    """What became of one test function, over all its parameters."""

    name: str
    file: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    n: int = 0
    wrong: int = 0
    reasons: set[str] = field(default_factory=set)


@cache
def named() -> dict[str, list[tuple[str, str]]]:
    """Every promise's tests as they are in the sources: (file, function), by id."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (ids := IDS.match(node.name)):
                for one in ids[1].rstrip("_").split("_"):
                    found[one.upper()].append((str(path.relative_to(ROOT)), node.name))
    return dict(found)


def node_ids() -> list[str]:
    """Every such test, a file's in the file's own order: some share a host and what was done to it before."""
    found = []
    for path in sorted({file for tests in named().values() for file, _ in tests}):
        places = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        names = [one.name for one in places if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        found += [f"{path}::{name}" for name in names if IDS.match(name)]
    return found


def texts() -> dict[str, dict[str, str]]:
    """The data file: text, owner, missing by id."""
    return tomllib.loads(TEXTS.read_text(encoding="utf-8"))


def results(files: Iterable[Path]) -> dict[tuple[str, str], Told]:
    """What the junit files say, by (file, function)."""
    found: dict[tuple[str, str], Told] = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):  # our own pytest wrote it
            where = case.get("classname", "").replace(".", "/") + ".py"
            name = case.get("name", "").partition("[")[0]
            told = found.setdefault((where, name), Told(name, where))
            _add(told, case)
    return found


def _add(told: Told, case: ElementTree.Element) -> None:
    skipped = case.find("skipped")
    if skipped is not None:
        told.skipped += 1
        told.reasons.add(skipped.get("message", "").partition(":")[0][:60])
    elif case.find("failure") is not None or case.find("error") is not None:
        told.failed += 1
    else:
        told.passed += 1
    numbers = {one.get("name"): one.get("value", "") for one in case.iter("property")}
    told.n += int(numbers.get("n", 0))
    told.wrong += int(numbers.get("wrong", 0))


def row(promise: str, text: dict[str, str], tests: list[tuple[str, str]], told: dict) -> str:
    """One line of the table."""
    heard = [told[key] for key in tests if key in told]
    most = max(heard, key=lambda one: one.n, default=None)
    n = bound = "-"
    if most is not None and most.n:
        n = f"{most.n:,}" + (f", {most.wrong} wrong" if most.wrong else "")
        bound = f"{upper_bound(most.wrong, most.n):.2g}"
    missing = text.get("missing", "")
    owner = f"**{text['owner']}**: {missing}" if missing else ""
    names = "<br>".join(f"`{name}`" for _, name in tests)
    cells = (promise, text["text"], names, _result(tests, heard, missing), n, bound, owner)
    return f"| {' | '.join(cells)} |"


def _result(tests: list[tuple[str, str]], heard: list[Told], missing: str) -> str:
    passed, failed = sum(one.passed for one in heard), sum(one.failed for one in heard)
    unseen = [one.name for one in heard if one.skipped] + [""] * (len(tests) - len(heard))
    cases = f"{passed} cases passed"
    if failed:
        return f"**FAILED**: {failed} cases, {passed} passed"
    if unseen:
        return f"not shown here: {cases}, {len(unseen)} of {len(tests)} tests not run"
    return f"{'partly' if missing else 'met'}: {cases}"


def table(told: dict[tuple[str, str], Told]) -> str:
    """The whole page."""
    tests, known = named(), texts()
    lines = [HEAD, "| Id | Promise | Tests | Result | n | 95 % bound | Owner, and what is missing |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [row(promise, text, tests.get(promise, []), told) for promise, text in known.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Do what the first argument says."""
    if arguments[:1] == ["tests"] and len(arguments) == 1:
        print(" ".join(node_ids()))
        return 0
    if arguments[:1] != ["write"] or len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    told = results(map(Path, arguments[1:]))
    TABLE.write_text(table(told), encoding="utf-8")
    failed = sum(one.failed for one in told.values())
    print(f"{TABLE.relative_to(ROOT)}: {len(texts())} promises; {failed} cases failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
