"""The command line: `preprocessor serve | doctor | prepare | generate | bench | plan | inspect | fingerprint | constraints |
completion`.

Standard output carries results alone; progress, logs and errors go to standard error. Exit status: 0 done, 1 refused or
failed, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
import sys

from preprocessor.cli.options import build_parser
from preprocessor.config import SettingError
from preprocessor.errors import PreprocessorError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
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
    except SettingError as error:
        return _fail(str(error), 2)
    except PreprocessorError as error:
        return _fail(f"{error.reason}: {error}", 1)
    except OSError as error:
        if (
            error.filename and error.strerror
        ):  # of all files, those of the command line alone are not read into a refusal
            return _fail(f"{error.filename}: {error.strerror}; give a file that can be read", 1)
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, status: int) -> int:
    print(f"preprocessor: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
