"""A folder that both vLLM and this service load: weights in the sizes of a 2B checkpoint, tokenizer, template and settings.

python -m tests.bench.device.vllm.checkpoint FOLDER [--tiny]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from deploy.vllm.tiny_checkpoint import complete_folder, write_folder
from tests.bench.device.checkpoint import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.device.vllm.checkpoint", description="Write the folder."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the tests' model, for a CPU")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.tiny:
        write_folder(arguments.folder)
    else:
        write_checkpoint(arguments.folder, torch.bfloat16, is_tiny=False)
        complete_folder(arguments.folder)
    print(f"{arguments.folder}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
