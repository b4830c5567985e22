"""`gpuvigil flight-recorder DIR`: which ranks hang, from the dumps that PyTorch wrote."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from gpuvigil_cli.client import CliError, Json
from gpuvigil_cli.text import clean, markup
from gpuvigil_detectors.training.bounded_pickle import FILE_BYTES_MAX, DumpError
from gpuvigil_detectors.training.flight_recorder import judge_files

_FILES_MAX: Final = 20_000


def judge_directory(directory: Path) -> Json:
    """Read every dump of a folder and name the culprits.

    Returns culprits (ranks; empty when nobody can be named), kind, group and evidence. Raises CliError when
    the folder or none of its files can be read.
    """
    try:
        verdict = judge_files(_files(directory))
    except DumpError as error:
        raise CliError(f"{clean(directory, 300)}: no dump could be read: {clean(error, 600)}") from None
    return {
        "culprits": list(verdict.culprits), "kind": verdict.kind, "group": verdict.group,
        "evidence": verdict.evidence,
    }  # fmt: skip


def show_verdict(console: Console, verdict: Json) -> None:
    """Print the verdict for people; dumps are hostile, so their names are cleaned."""
    culprits = ", ".join(map(str, verdict["culprits"])) or "none can be named"
    console.print(f"culprits   [bold]{markup(culprits)}[/]")
    console.print(f"kind       {markup(verdict['kind'], 40)}")
    console.print(f"group      {markup(verdict['group'] or '-', 260)}")
    console.print(f"evidence   {markup(verdict['evidence'])}")


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files of a folder, one after the other; a link, a pipe or a device is no dump."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise CliError(f"{clean(directory, 300)}: {error.strerror}") from None
    if len(paths) > _FILES_MAX:
        raise CliError(f"{clean(directory, 300)}: {len(paths)} files, at most {_FILES_MAX} are read")
    for path in paths:
        data = _read(path)
        if data is not None:
            yield path.name, data


def _read(path: Path) -> bytes | None:
    """Up to the size that the reader refuses and one byte more; None for what is no regular file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read(FILE_BYTES_MAX + 1)
