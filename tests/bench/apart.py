"""Each path in a process of its own, as it would run in use: what one leaves in its heap saves the next its page faults.

Ours keeps what it has freed, as it does in a worker; so does the bound, which is the floor of our way. The others have the
heap that Python gives them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

from preprocessor.config.machine import use_one_thread
from preprocessor.workers.heap import keep_freed_memory
from tests.bench.contest import Result, Runner, Sample, timed_here

_KEEPING = ("ours", "ours FP32", "bound")
_run: Runner


@contextmanager
def timed_apart(paths: Mapping[str, Callable[[], Result]]) -> Iterator[dict[str, Runner]]:
    """Runners of paths, by name; a path must pickle."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, context, _begin, (path, name in _KEEPING)))
            for name, path in paths.items()
        }
        for warm_up in [process.submit(_once) for process in processes.values()]:  # imports, first calls
            warm_up.result()
        yield {name: partial(_ask, process) for name, process in processes.items()}


def _ask(process: ProcessPoolExecutor) -> Sample:
    return process.submit(_once).result()


def _begin(path: Callable[[], Result], keeps_freed_memory: bool) -> None:
    global _run
    use_one_thread()
    if keeps_freed_memory:
        keep_freed_memory()
    _run = timed_here(path)


def _once() -> Sample:
    return _run()
