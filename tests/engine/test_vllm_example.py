"""deploy/examples/to_vllm.py, with a real vLLM in its own process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.engine.test_vllm_input import media_arrays
from tests.engine.vllm_prompts import KINDS, PATIENCE_SECONDS, tensors_of
from tests.engine.vllm_server import INSTALLED
from tests.loading import load_family_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


def test_saved_tensors_have_the_answers_that_vllm_gives_to_the_files(tiny_qwen3_vl: Path, tmp_path: Path) -> None:
    tiny = load_family_model(str(tiny_qwen3_vl))
    for number, media in enumerate(KINDS.values()):
        save_file(tensors_of(tiny, media), tmp_path / f"{number}.safetensors")
        np.savez(tmp_path / f"{number}.media.npz", **media_arrays(tiny, media))
    ran = subprocess.run(
        [INSTALLED.with_name("python"), Path(__file__).with_name("vllm_example.py"), tiny_qwen3_vl, tmp_path],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, which leaves nothing behind
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "equal"
