"""`python -m tests.bench.device PART…`: this project on a machine with many cores and a GPU.

Parts:
  splitting     one clip at a time on an idle service, by workers
  stages        each step between finished rows and the first token
  first-token   time to the first token by form and transport
  equality      tokens beside those of transformers itself
  parting       the same in one process, step by step: where they part
  idle          how long the GPU waits, preprocessing in its process and in the service

Writes PART.json into --out after each part. All but `splitting` need --checkpoint (`python -m tests.bench.device.checkpoint`);
`first-token`, `equality` and `idle` also a real Triton (`make triton`, or TRITON_DIST and TRITON_PYTHON). Without a GPU
everything runs on the CPU, with a tiny model, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.device.engines import FORMS
from tests.bench.device.equality import equality
from tests.bench.device.first_token import first_token
from tests.bench.device.idle import idle
from tests.bench.device.parting import parting
from tests.bench.device.splitting import splitting
from tests.bench.device.stages import stages
from tests.bench.machine import machine

PARTS = ("splitting", "stages", "first-token", "equality", "parting", "idle")


def main() -> None:
    arguments = _parser().parse_args()
    fps, quick = tuple(arguments.fps), arguments.quick
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "splitting": lambda: splitting(rounds=1 if quick else arguments.rounds, is_quick=quick),
        "stages": lambda: stages(arguments.checkpoint, rounds=1 if quick else arguments.rounds, fps=fps),
        "first-token": lambda: first_token(arguments.checkpoint, rounds=1 if quick else arguments.rounds, fps=fps),
        "equality": lambda: equality(arguments.checkpoint, forms=tuple(arguments.forms)),
        "parting": lambda: parting(arguments.checkpoint),
        "idle": lambda: idle(
            arguments.checkpoint,
            fps=fps,
            callers=tuple(arguments.callers),
            max_tokens=arguments.max_tokens,
            warm_seconds=3.0 if quick else 5.0,
            seconds=3.0 if quick else arguments.seconds_each,
        ),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        began = time.monotonic()
        figures = parts[name]()
        report = {"machine": _machine(), "figures": figures}
        (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def _machine() -> dict[str, Any]:
    """What `machine` says, and the GPU."""
    import torch

    about = machine()
    about["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--checkpoint", type=Path, help="the engine's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "out")
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0], help="frames a second (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=7, help="of what runs in turn (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="of equality (default: all)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32], help="of idle (default: 1 8 32)")
    parser.add_argument("--max-tokens", type=int, default=8, help="of an answer in idle (default: %(default)s)")
    parser.add_argument("--seconds-each", type=float, default=12.0, help="of a point of idle (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="show that everything runs; the figures prove nothing")
    return parser


if __name__ == "__main__":
    main()
