"""What `vllm_own_input.py` says of prompts: whether vLLM itself makes the same inputs of the same files and frames."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.engine.vllm_server import INSTALLED


def compared_inputs(folders: Mapping[str, tuple[Path, Path]]) -> dict[str, str]:
    """Compare in one process, since vLLM takes long to import.

    Args:
        folders: By name, of a checkpoint and of its prompts.
    Returns:
        By name, "equal uint8" or "equal floats", or what differs. pytest shows tracebacks with a failure.
    """
    paths = [path for pair in folders.values() for path in pair]
    ran = subprocess.run(
        [INSTALLED.with_name("python"), Path(__file__).with_name("vllm_own_input.py"), *paths],
        env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    print(ran.stderr)
    return dict(zip(folders, ran.stdout.splitlines()[-len(folders) :], strict=True))
