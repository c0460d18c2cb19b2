"""The command line: `preprocessor serve | doctor | prepare | generate | bench | plan | inspect | fingerprint | constraints |
completion`.

Standard output carries results alone; progress, logs and errors go to standard error. Exit status: 0 done, 1 refused or
failed, 2 wrong usage, 141 nobody reads standard output any more.
"""

from __future__ import annotations

import importlib
import os
import select
import sys

from preprocessor.cli.options import build_parser
from preprocessor.config import SettingError
from preprocessor.errors import PreprocessorError

_NOT_READ = 128 + 13  # as a shell tells of a program that SIGPIPE has ended


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # at the interpreter's end nobody could catch what it raises
    except SettingError as error:
        return _fail(str(error), 2)
    except PreprocessorError as error:
        return _fail(f"{error.reason}: {error}", 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be flushed
            return _NOT_READ
        if (
            error.filename and error.strerror
        ):  # of all files, those of the command line alone are not read into a refusal
            return _fail(f"{error.filename}: {error.strerror}; give a file that can be read", 1)
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(arguments: list[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    if options.command != "serve":
        os.environ.setdefault(
            "GRPC_VERBOSITY", "NONE"
        )  # what fails is told in a sentence, without gRPC's own lines beside it
    # Each command is a module of its own name, imported when called: asking a service needs none of the extra `serve`, and must
    # not wait for torch to load.
    try:
        return int(importlib.import_module(f"preprocessor.cli.{options.command}").run(options))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("preprocessor", "engine_client"):
            raise
        extra = "pip install 'vlm-preprocessor[serve]'"
        return _fail(f"`{options.command}` needs {error.name}, which is not installed: {extra}", 1)


def _is_output_closed() -> bool:
    """Whether standard output is a pipe whose reader has gone, as `head` goes."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))  # poll(2)


def _fail(message: str, status: int) -> int:
    print(f"preprocessor: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
