"""Logging for both daemons: structlog, one snake_case event a line, logfmt on standard error.

Text from outside never reaches the terminal raw: control characters are escaped by the renderer.
"""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog


def configure(level: str = "info") -> None:
    """Set up structlog once for this process. journald adds the time, so a line has none under systemd."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that says which part of the program speaks."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part=name))


def _escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
