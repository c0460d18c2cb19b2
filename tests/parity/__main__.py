"""Our pipeline beside Hugging Face's on hundreds of random requests, live. Run from the repository's root:

    python -m tests.parity                # or: make parity
    python -m tests.parity --models glm-4.6v
    python -m tests.parity --case 17      # one case again, told in full

Prints progress, then a Markdown table of how many cases were equal. Ends with 1 where any value of any case differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from tests.golden.oracle import STAMPED_LIBRARIES
from tests.parity.cases import CASE_COUNT, KINDS, case, describe, make_request
from tests.parity.compare import run_case
from tests.parity.directories import MODEL_NAMES, model_named, save_models


def run_all(numbers: Sequence[int], jobs: int, folder: Path) -> dict[int, list[str]]:
    """Case number → what differs; progress goes to standard error."""
    found: dict[int, list[str]] = {}
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, told in enumerate(pool.map(run_case, numbers, [folder] * len(numbers))):
            number = numbers[done]
            found[number] = told
            for line in told:
                print(f"{case(number)}\n  {line}", file=sys.stderr)
            if (done + 1) % 16 == 0 or done + 1 == len(numbers):
                differing = sum(map(bool, found.values()))
                elapsed = time.monotonic() - began
                print(
                    f"{done + 1}/{len(numbers)} cases, {differing} differ, {elapsed:.0f} s", file=sys.stderr, flush=True
                )
    return found


def table(found: dict[int, list[str]], models: Sequence[str]) -> str:
    """Media and sampling × models: equal cases, of how many where some differ."""
    counts, equal = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for number, told in found.items():
        asked = case(number)
        place = (asked.media, asked.sampling, asked.model)
        counts[place] += 1
        equal[place] += not told
    lines = [f"| media | sampling | {' | '.join(models)} |", "|---|---|" + "--:|" * len(models)]
    for media, sampling in KINDS:
        places = [(media, sampling, model) for model in models]
        cells = [str(n) if equal[p] == (n := counts[p]) else f"**{equal[p]} of {n}**" for p in places]
        lines.append(f"| {media} | {sampling.replace('none', '–')} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version(name)}" for name in STAMPED_LIBRARIES)
    verdict = f"{equal.total()} of {counts.total()} cases equal in every value. {versions}."
    return "\n".join([*lines, "", verdict])


def run_one(number: int, folder: Path) -> list[str]:
    asked = case(number)
    model = model_named(asked.model, folder)
    print(f"{asked}\n  {describe(make_request(asked, model))}")
    told = run_case(number, folder)
    print("\n".join(told) or "equal in every value")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="Compare with Hugging Face, live.")
    parser.add_argument("--case", type=int, metavar="N", help="run case N alone")
    parser.add_argument("--cases", type=int, default=CASE_COUNT, metavar="COUNT", help="how many, from case 0")
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=MODEL_NAMES, help="whose cases alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="COUNT", help="processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        if options.case is not None:
            return bool(run_one(options.case, folder))
        numbers = [number for number in range(options.cases) if case(number).model in options.models]
        found = run_all(numbers, options.jobs, folder)
    print(table(found, options.models))
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
