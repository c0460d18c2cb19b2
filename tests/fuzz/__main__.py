"""`python -m tests.fuzz`: mutated files and requests against real services. Exit status 1 where anything failed.

A case is made of the seed and its number alone, so a failure is seen again with `--seed SEED --first NUMBER --count 1` (on a
machine whose encoders give the same good files; the mutated file itself is kept).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from pathlib import Path

from tests.fuzz.report import render
from tests.fuzz.run import Settings, run
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="a random one if absent")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=20_000, help="cases at most")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop before")
    parser.add_argument("--only", default="", help="only seeds whose name holds this, such as 'mkv'")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where files go that are worth keeping")
    parser.add_argument("--video-decoder", default="pyav", choices=["pyav", "opencv"], help="as of `serve`")
    given = parser.parse_args()
    settings = Settings(given.seed, given.first, given.count, given.seconds, given.only, given.folder)
    print(f"seed {settings.seed}", flush=True)
    os.environ.setdefault("SVT_LOG", "1")  # errors only, of the encoder behind some of the good files
    with targets(given.video_decoder) as under_fire:
        findings = asyncio.run(run(settings, under_fire))
        print(render(findings, settings, under_fire))
    return bool(findings.failures)


if __name__ == "__main__":
    sys.exit(main())
