"""`@connected`: a command that talks to a collector, with the options that say which, and as whom."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gpuvigil_cli.client import DEFAULT_URL, Client, CliError, Identity
from gpuvigil_cli.text import clean

_ADMIN_TOKEN: Final = Path("/var/lib/gpuvigil-collector/admin.token")
_TOKEN_MAX: Final = 512


def _option(name: str, text: str) -> Any:
    return Annotated[str, typer.Option(envvar=f"GPUVIGIL_{name}", help=text)]


_OPTIONS: Final[dict[str, tuple[Any, str]]] = {
    "url": (_option("URL", "The collector's API."), DEFAULT_URL),
    "ca": (_option("CA", "With https: the collector's CA, a PEM file."), ""),
    "cert": (_option("CERT", "With https: your certificate, a PEM file."), ""),
    "key": (_option("KEY", "With https: its key, a PEM file."), ""),
    "token_file": (_option("TOKEN_FILE", "Your token; else this host's collector's, if readable."), ""),
}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of (client, its own parameters) the options of a connection, and close it after."""
    signature = inspect.signature(command, eval_str=True)
    own = [each for name, each in signature.parameters.items() if name != "client"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        where = {name: given.pop(name) for name in _OPTIONS}
        identity = Identity(ca=where["ca"], certificate=where["cert"], key=where["key"])
        with Client(where["url"], identity, token=_token(where["token_file"])) as client:
            command(client, **given)

    parameters = [each.replace(kind=keyword) for each in own] + shared
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return run


def _token(file: str) -> str:
    """Read the token of a file, or of the collector on this host where it may be read. Raises CliError."""
    path = Path(file) if file else _ADMIN_TOKEN
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if not file:
            return ""
        raise CliError(f"--token-file: {clean(file, 200)} cannot be read: {clean(error, 200)}") from None
    if not 0 < len(token) <= _TOKEN_MAX or any(c.isspace() for c in token):
        raise CliError(f"--token-file: expected one token in {clean(str(path), 200)}, got something else")
    return token
