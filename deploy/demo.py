"""The main job from end to end: `make demo`, or `make demo ENGINE=vllm`.

Makes a video, starts a real Triton with `vlm_transformers`, or a real vLLM, and this service in front of it, asks a question
about the video through the command line, and stops everything again. The model is tiny and random, so the tokens mean
nothing; that the right pixels and ids reach it is what the tests prove.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.triton.local_server import RANDOM_WEIGHTS, TritonServer
from tests.media import moving_shapes_clip

PREPROCESSOR = (sys.executable, "-m", "preprocessor")
QUESTION = "Which shapes move, and where do they go?"
START_SECONDS = 300.0
STOP_SECONDS = 30.0


def main(engine_kind: str = "triton") -> int:
    """Run the demo; returns the exit status of the command that asked the question."""
    with tempfile.TemporaryDirectory(prefix="preprocessor-demo-") as directory:
        clip = Path(directory) / "clip.mp4"
        say("making a clip: 30 s, 374x374, H.264")
        clip.write_bytes(moving_shapes_clip())
        with ENGINES[engine_kind](Path(directory)) as (engine_address, options):
            say(f"the engine is ready on {engine_address}; starting the service")
            with service(engine_address, options, Path(directory) / "service.log") as address:
                say(f"the service is ready on {address}; asking: {QUESTION}\n")
                asked = [*PREPROCESSOR, "generate", "--address", address, "--video", str(clip), "--fps", "1"]
                status = subprocess.run([*asked, "--text", QUESTION, "--max-tokens", "32"], check=False).returncode
    say("done, everything stopped" if status == 0 else f"failed with exit status {status}")
    return status


@contextmanager
def triton(_: Path) -> Iterator[tuple[str, list[str]]]:
    """A Triton; yields its address and the service's further options."""
    say("starting Triton with vlm_transformers")
    with TritonServer(["vlm_transformers"], environment=RANDOM_WEIGHTS) as server:
        yield server.grpc_address, []


@contextmanager
def vllm(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """A vLLM, as `triton`."""
    from deploy.vllm.local_server import VllmServer
    from deploy.vllm.tiny_checkpoint import write_folder  # it imports torch

    checkpoint = directory / "checkpoint"
    write_folder(checkpoint)
    say("starting vLLM with a tiny Qwen3-VL; a start takes one to three minutes")
    with VllmServer(checkpoint) as server:
        yield f"vllm://{server.address}", ["--model", str(checkpoint)]


ENGINES = {"triton": triton, "vllm": vllm}


@contextmanager
def service(engine_address: str, options: Sequence[str], log_path: Path) -> Iterator[str]:
    """A `preprocessor serve` process on free ports; yields its address once it is ready, and stops it with SIGTERM."""
    command = [*PREPROCESSOR, "serve", "--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    with log_path.open("wb") as log:
        process = subprocess.Popen([*command, "--engine", engine_address, *options], stderr=log)
    try:
        yield wait_until_ready(process, log_path)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log_path: Path) -> str:
    """The service's gRPC address, once `/readyz` says yes for `Generate`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"on grpc (\S+), http (\S+);", log_path.read_text()):
            try:
                with urllib.request.urlopen(f"http://{found[2]}/readyz?method=Generate", timeout=2):
                    return found[1]
            except urllib.error.URLError:
                pass  # listening, not ready yet
        time.sleep(0.1)
    raise RuntimeError(f"the service did not get ready:\n{log_path.read_text()}")


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m deploy.demo")
    parser.add_argument("engine", nargs="?", choices=ENGINES, default="triton", help="default: %(default)s")
    sys.exit(main(parser.parse_args().engine))
