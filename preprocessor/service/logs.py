"""The log: lines of text for people, or a JSON object a line for machines, each with the request that it is about.

Who logs need not say which request is being served: `about` has it. Nothing here adds what a caller sent but his request id,
which is printable, short, and meant for this.

A line of one kind may come thousands of times a second, such as a refusal during a stop. The first few in a while are written,
the rest are counted, and a line says how many they were. Below level info nothing is left out.
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

SUM_SECONDS = 10.0
MAX_ALIKE = 10
"""Lines of one kind that are written in so many seconds."""
_MAX_KINDS = 256


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
    """One object a line: `time`, `level`, `logger`, `message`, `request_id`, `trace_id`, `exception`; none is empty.

    The line for those that were not written has their `count`.
    """

    def format(self, record: logging.LogRecord) -> str:
        subject = _SUBJECT.get()
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "count": getattr(record, "count", 0),
            "request_id": "" if subject is None else subject.request_id,
            "trace_id": "" if subject is None else subject.trace_id,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({key: value for key, value in line.items() if value}, ensure_ascii=False)


@dataclass(slots=True)
class _Kind:
    """Lines of one kind since its time began: how many came, and the last that was not written."""

    began_seconds: float
    came_count: int = 0
    last: logging.LogRecord | None = None


class SummingHandler(logging.StreamHandler[TextIO]):
    """Writes lines, and for those of a kind beyond `MAX_ALIKE` in `SUM_SECONDS` one line with their number.

    Of one kind are lines of one logger and one text, before arguments are put in; and of one `kind`, where they bring one as
    `extra`.

    Args:
        clock: Seconds that only ever grow.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.write_sums()
        key = (record.name, str(record.msg), getattr(record, "kind", ""))
        if key not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            self.write_sums(all_of_them=True)
        kind = self._kinds.setdefault(key, _Kind(self._clock()))
        kind.came_count += 1
        if kind.came_count <= MAX_ALIKE:
            super().emit(record)
        else:
            kind.last = record

    def write_sums(self, *, all_of_them: bool = False) -> None:
        """Say of each kind whose time is over how many lines were not written, and begin anew with it."""
        with self.lock or contextlib.nullcontext():
            now = self._clock()
            over = [key for key, kind in self._kinds.items() if all_of_them or now - kind.began_seconds >= SUM_SECONDS]
            for kind in [self._kinds.pop(key) for key in over]:
                if kind.last is not None:
                    # Not about the request that happens to be served here.
                    contextvars.Context().run(super().emit, _sum_of(kind, kind.last, now))


def _sum_of(kind: _Kind, last: logging.LogRecord, now_seconds: float) -> logging.LogRecord:
    count, seconds = kind.came_count - MAX_ALIKE, now_seconds - kind.began_seconds
    text = last.getMessage().partition("\n")[0]
    message = f"{count} more like this in {seconds:.0f} s; the last: {text}"
    facts = {"name": last.name, "levelno": last.levelno, "levelname": last.levelname, "msg": message, "count": count}
    return logging.makeLogRecord(facts)


async def keep_writing_sums() -> None:
    """Do so when their time is over, until cancelled; then at once."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, SummingHandler)]
    try:
        while True:
            await asyncio.sleep(SUM_SECONDS)
            for handler in handlers:
                handler.write_sums()
    finally:
        for handler in handlers:
            handler.write_sums(all_of_them=True)


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def configure(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level, form: As `config.ServeSettings` has them.
    """
    handler = logging.StreamHandler(sys.stderr) if level.upper() == "DEBUG" else SummingHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
