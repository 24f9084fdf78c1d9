"""Structured logs: a constant message and keys, one line per event, on standard error.

JSON where nobody watches, readable columns on a terminal (or by ``IPE_LOG_FORMAT``). Modules take a logger by ``get_logger`` and
say the place by keys (``cluster``, ``resource``, ``namespace``, ``name``, ``event_id``), never inside the message, so that a log
can be searched by them. Nothing is configured on import: a program calls ``configure`` once, a library user keeps their own.
"""

import logging
import os
import sys
from typing import Any, Literal

import structlog

from ipe_events.errors import ConfigError

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Log = structlog.typing.FilteringBoundLogger
"""What ``get_logger`` returns and handlers are injected with."""


def get_logger(name: str) -> Log:
    """A logger that carries its module's name as key ``module``; cheap until first used."""
    logger: Log = structlog.get_logger(module=name)
    return logger


def configure(*, level: str = "", form: Literal["", "json", "console"] = "") -> None:
    """Send this process's log to standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; by default ``IPE_LOG_LEVEL`` or ``info``.
        form: ``json`` or ``console``; by default ``IPE_LOG_FORMAT``, else ``console`` on a terminal and ``json`` elsewhere.

    Raises:
        ConfigError: a level or form that does not exist.
    """
    level = level or os.environ.get("IPE_LOG_LEVEL", "info")
    chosen = form or os.environ.get("IPE_LOG_FORMAT", "") or ("console" if sys.stderr.isatty() else "json")
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} does not exist", where="IPE_LOG_LEVEL", fix=f"one of {', '.join(LEVELS)}")
    if chosen not in {"json", "console"}:
        raise ConfigError(f"log format {chosen!r} does not exist", where="IPE_LOG_FORMAT", fix="json or console")
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if chosen == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        processors.append(structlog.dev.ConsoleRenderer(colors=colors))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        # the stream is looked up at each line: tests and daemons exchange it
        logger_factory=lambda *_names: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
