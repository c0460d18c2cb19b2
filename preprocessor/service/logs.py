"""The log: lines of text for people, or a JSON object a line for machines, each with the request that it is about.

Who logs need not say which request is being served: `about` has it. Nothing here adds what a caller sent but his request id,
which is printable, short, and meant for this.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """The request that runs here now."""

    request_id: str
    trace_id: str


_SUBJECT: ContextVar[Subject | None] = ContextVar("subject", default=None)


def about(request_id: str, trace_id: str) -> None:
    """From now on this task, and those it starts, serve this request."""
    _SUBJECT.set(Subject(request_id, trace_id))


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO preprocessor.service.server: message`; a request's line ends with its trace."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        subject = _SUBJECT.get()
        trace = f" [trace {subject.trace_id}]" if subject is not None and subject.trace_id else ""
        return super().formatMessage(record) + trace


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, `request_id`, `trace_id`, `exception`; none is empty."""

    def format(self, record: logging.LogRecord) -> str:
        subject = _SUBJECT.get()
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": "" if subject is None else subject.request_id,
            "trace_id": "" if subject is None else subject.trace_id,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({key: value for key, value in line.items() if value}, ensure_ascii=False)


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def configure(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level, form: As `config.ServeSettings` has them.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
