"""The rules of the house that a machine can check: sizes, dangerous calls, catalogue, shared literals."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = [ROOT / name for name in ("agent", "collector", "detectors", "protos")]
GENERATED = ROOT / "protos/gpuvigil_protos/v1"
FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 40
BANNED_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BANNED_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "pickle.load",
    "pickle.loads",
}


def python_files(*roots: Path) -> list[Path]:
    """Every Python file of ours below `roots`, generated code left out."""
    found = sorted(path for root in roots for path in root.rglob("*.py"))
    return [path for path in found if GENERATED not in path.parents]


PRODUCT = python_files(*CODE)
EVERYTHING = PRODUCT + python_files(ROOT / "tests")


def name_of(path: Path) -> str:
    """Test id: the path inside the repository."""
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_sizes_and_docstring(path: Path) -> None:
    """A file has at most 300 lines and says what it is; a function has at most 40."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    long = [
        f"{f.name}:{f.lineno}" for f in functions(tree) if f.end_lineno - f.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert len(text.splitlines()) <= FILE_LINES_MAX
    assert long == []
    assert ast.get_docstring(tree) or not text.strip(), "a module says what it is in its docstring"


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_code_from_data(path: Path) -> None:
    """No pickle, eval, yaml.load or shell=True; no bare except."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    imported |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & BANNED_IMPORTS
    assert not {name for name, _ in _calls(tree)} & BANNED_CALLS
    for name, call in _calls(tree):
        shell = [
            k for k in call.keywords if k.arg == "shell" and getattr(k.value, "value", None) is not False
        ]
        assert not shell, f"{name} with shell="
        if name == "np.load":
            given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            assert given.get("allow_pickle") is False, "np.load says allow_pickle=False in so many words"
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]


def test_every_config_struct_refuses_unknown_keys() -> None:
    """A key that nobody reads is a mistake of the operator, and is told to him."""
    files = [path for path in PRODUCT if path.name in ("config.py", "settings.py")]
    structs = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any("Struct" in ast.unparse(base) for base in node.bases)
    ]
    assert len(structs) > 10
    for node in structs:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("forbid_unknown_fields") == "True", node.name


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_log_events_are_one_snake_case_word(path: Path) -> None:
    """`_log.warning("spool_degraded", ...)`: what is searched for is one word; numbers are fields."""
    for name, call in _calls(ast.parse(path.read_text())):
        owner, _, level = name.rpartition(".")
        if owner in ("_log", "self._log") and level in ("debug", "info", "warning", "error") and call.args:
            if isinstance(call.args[0], ast.Name):  # chosen between two words just above
                continue
            word = getattr(call.args[0], "value", None)
            assert isinstance(word, str) and re.fullmatch(r"[a-z][a-z0-9_]*", word), (
                f"{call.lineno}: {word!r}"
            )


# long-lived streams: what bounds them is said here
STREAMS_WITHOUT_TIMEOUT = {"session.py": "Session._watch ends a stream without an ack for ACK_TIMEOUT_S"}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_every_call_of_the_wire_has_a_deadline(path: Path) -> None:
    """A call through a stub has a timeout; waiting for a call's end has one too."""
    tree = ast.parse(path.read_text())
    bounded = {
        inner
        for name, call in _calls(tree)
        if name == "asyncio.wait_for"
        for inner in ast.walk(call)
        if isinstance(inner, ast.Call)
    }
    for name, call in _calls(tree):
        if ".stub." in f".{name}" and "timeout" not in {keyword.arg for keyword in call.keywords}:
            assert path.name in STREAMS_WITHOUT_TIMEOUT, f"{path.name}:{call.lineno}: {name} without timeout"
        if name in ("call.code", "call.details"):
            assert call in bounded, f"{path.name}:{call.lineno}: {name} without wait_for"


def test_only_the_driver_process_and_the_simulator_know_nvml() -> None:
    """One file talks to the library, so that one process may hang in it."""
    importers = {
        path.relative_to(ROOT / "agent/gpuvigil_agent").as_posix()
        for path in python_files(ROOT / "agent/gpuvigil_agent")
        if re.search(r"^\s*(import|from) pynvml", path.read_text(), re.MULTILINE)
    }
    assert {name for name in importers if not name.startswith("simulate/")} == {"nvml.py"}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_product_knows_nothing_of_the_workplace(path: Path) -> None:
    """The product reads no reference data and names no machine path."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/work/|\.\./shared|/root/|/home/[a-z]", text)


@pytest.mark.parametrize("path", sorted((ROOT / "tests/bench").glob("bench_*.py")), ids=name_of)
def test_every_benchmark_knows_the_short_run(path: Path) -> None:
    """`make bench ARGS=--quick` gives the word to each."""
    words = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    assert "--quick" in words


def test_dependencies_of_the_base_install_are_none() -> None:
    """`pip install gpuvigil` pulls nothing: the hook lives in training images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []


def test_hook_imports_the_standard_library_alone() -> None:
    """The hook package imports no third party at module level and nothing that Python 3.9 lacks."""
    import sys

    for path in python_files(ROOT / "agent/gpuvigil"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"gpuvigil"}, f"{path}: {name}"


def _literals(root: Path) -> set[str]:
    """Numbers with three or more significant digits in code (not docstrings) and in data files."""
    found = set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                found.add(repr(node.value))
    for path in sorted(root.rglob("*.toml")):
        found |= set(
            re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w.])", re.sub(r'"[^"]*"', "", path.read_text()))
        )
    return {n for n in found if len(re.sub(r"e.*", "", n).replace(".", "").strip("0")) >= 3}


def test_simulator_and_detectors_share_no_number() -> None:
    """The simulator must not know the detectors' thresholds; vendor facts are listed with their source."""
    listed = tomllib.loads((ROOT / "tests/fixtures/vendor_facts.toml").read_text())
    shared = _literals(ROOT / "agent/gpuvigil_agent/simulate") & _literals(
        ROOT / "detectors/gpuvigil_detectors"
    )
    assert shared - set(listed["numbers"]) == set()
