"""Logging: lines of text, or one JSON object a line, each with the request that it belongs to.

Code that logs need not name the request: `set_request` does, once a call. Of what a caller sent, the log contains only the
request ID, which is printable and short.

Similar records may come thousands of times a second, for example refusals during a stop. The first `MAX_SIMILAR` in
`SUMMARY_SECONDS` are written; the rest are counted, and one summary line gives their number. At level debug all are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime
import json
import logging
import sys
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TextIO

SUMMARY_SECONDS = 10.0
MAX_SIMILAR = 10
"""Similar records that are written in `SUMMARY_SECONDS`."""
_MAX_KINDS = 256


@dataclass(frozen=True, slots=True)
class RequestIds:
    """The request that the current task serves."""

    request_id: str
    trace_id: str


_REQUEST: ContextVar[RequestIds | None] = ContextVar("request", default=None)


def set_request(request_id: str, trace_id: str) -> None:
    """Log records of this task, and of tasks that it starts, belong to this request from now on."""
    _REQUEST.set(RequestIds(request_id, trace_id))


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO preprocessor.service.server: message`; a request's line ends with its trace."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        request = _REQUEST.get()
        trace = f" [trace {request.trace_id}]" if request is not None and request.trace_id else ""
        return super().formatMessage(record) + trace


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, `request_id`, `trace_id`, `exception`; empty ones are omitted.

    A summary line also has `count`.
    """

    def format(self, record: logging.LogRecord) -> str:
        request = _REQUEST.get()
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "count": getattr(record, "count", 0),
            "request_id": "" if request is None else request.request_id,
            "trace_id": "" if request is None else request.trace_id,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({key: value for key, value in line.items() if value}, ensure_ascii=False)


@dataclass(slots=True)
class _Kind:
    """Similar records since `started_seconds`: their number, and the last one that was not written."""

    started_seconds: float
    record_count: int = 0
    last: logging.LogRecord | None = None


class SummarizingHandler(logging.StreamHandler[TextIO]):
    """Writes records, and one summary line for similar ones beyond `MAX_SIMILAR` in `SUMMARY_SECONDS`.

    Records are similar if they have the same logger, the same text before formatting, and the same `extra["kind"]`, if any.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.write_summaries()
        key = (record.name, str(record.msg), getattr(record, "kind", ""))
        if key not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            self.write_summaries(write_all=True)
        kind = self._kinds.setdefault(key, _Kind(self._clock()))
        kind.record_count += 1
        if kind.record_count <= MAX_SIMILAR:
            super().emit(record)
        else:
            kind.last = record

    def write_summaries(self, *, write_all: bool = False) -> None:
        """For each kind whose period is over, write how many records were omitted, and forget the kind."""
        with self.lock or contextlib.nullcontext():
            now = self._clock()
            due = [
                key for key, kind in self._kinds.items() if write_all or now - kind.started_seconds >= SUMMARY_SECONDS
            ]
            for kind in [self._kinds.pop(key) for key in due]:
                if kind.last is not None:
                    # The summary does not belong to the request of the current task.
                    contextvars.Context().run(super().emit, _summary_of(kind, kind.last, now))


def _summary_of(kind: _Kind, last: logging.LogRecord, now_seconds: float) -> logging.LogRecord:
    count, seconds = kind.record_count - MAX_SIMILAR, now_seconds - kind.started_seconds
    text = last.getMessage().partition("\n")[0]
    message = f"{count} more like this in {seconds:.0f} s; the last: {text}"
    facts = {"name": last.name, "levelno": last.levelno, "levelname": last.levelname, "msg": message, "count": count}
    return logging.makeLogRecord(facts)


async def keep_writing_summaries() -> None:
    """Write summaries every `SUMMARY_SECONDS` until cancelled, and once more then."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, SummarizingHandler)]
    try:
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            for handler in handlers:
                handler.write_summaries()
    finally:
        for handler in handlers:
            handler.write_summaries(write_all=True)


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def configure(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level, form: `log_level` and `log_format` of `config.ServeSettings`.
    """
    handler = logging.StreamHandler(sys.stderr) if level.upper() == "DEBUG" else SummarizingHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
