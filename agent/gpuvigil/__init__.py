"""The training hook and the `gpuvigil` dispatcher: standard library alone, Python 3.9+.

    from gpuvigil import monitor

`monitor` is made when it is first asked for, so that the dispatcher and the daemons do without it.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "monitor":
        from gpuvigil.loop import monitor  # noqa: PLC0415 - the daemons import this package too

        return monitor
    raise AttributeError(name)
