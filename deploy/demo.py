"""The main job from end to end: `make demo`, or `make demo ENGINE=vllm`.

Draws a clip of shapes that move, starts a real Triton with `vlm_transformers`, or a real vLLM, and this service in front of it,
asks three questions about the clip through the command line, checks the answers, and stops everything again. The model is the
small one of `deploy/demo_model`, which knows such clips and nothing else.

Exit status: 0 where every answer is right; 1 where one is wrong, which may be the model's own mistake, or missing. `make` makes 2
of 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
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

from deploy.demo_model.questions import Question, demo_questions
from deploy.demo_model.story import (
    CLIP_RATE,
    CLIP_SIDE_PX,
    HELD_OUT_SEEDS,
    draw_all,
    make_clip,
    make_story,
    pixel_budget,
)
from deploy.triton.local_server import TritonServer

PREPROCESSOR = (sys.executable, "-m", "preprocessor")
START_SECONDS = 300.0
STOP_SECONDS = 30.0


def main(engine_kind: str = "triton", seed: int | None = None) -> int:
    """Run the demo.

    Args:
        seed: The clip's number; None chooses one.
    Returns:
        The exit status: 0 where every answer is right, else 1.
    """
    seed = secrets.randbelow(HELD_OUT_SEEDS) if seed is None else seed
    story = make_story(seed)
    with tempfile.TemporaryDirectory(prefix="preprocessor-demo-") as directory:
        clip = Path(directory) / "clip.mp4"
        say(f"making clip {seed}: {story.seconds} s, {CLIP_SIDE_PX}x{CLIP_SIDE_PX}, {CLIP_RATE} frames a second, H.264")
        clip.write_bytes(make_clip(draw_all(story)))
        with ENGINES[engine_kind](Path(directory)) as (engine_address, options):
            say(f"the engine is ready on {engine_address}; starting the service")
            with service(engine_address, options, Path(directory) / "service.log") as address:
                say(f"the service is ready on {address}\n")
                questions = demo_questions(story, seed)
                verdicts = [ask(address, clip, pixel_budget(story.seconds), question) for question in questions]
    say(f"{verdicts.count(True)} of {len(verdicts)} answers are right; everything stopped")
    for line in explanations(verdicts, engine_kind, seed):
        say(line)
    return 0 if all(verdicts) else 1


def explanations(verdicts: Sequence[bool | None], engine_kind: str, seed: int) -> list[str]:
    """What a user should know where not every answer is right; verdicts are those of `ask`."""
    if all(verdicts):
        return []
    lines = []
    if None in verdicts:
        lines.append("no answer came to a question: the command's message above says why")
    if False in verdicts:
        lines.append(
            "a wrong answer may be the model's own mistake: deploy/demo_model/README.md says how often it errs"
        )
        lines.append("if answers about other clips are wrong too (make demo draws another), it is hardly the model's")
    engine = "" if engine_kind == "triton" else f" ENGINE={engine_kind}"
    return [*lines, f"to ask about clip {seed} again: make demo{engine} SEED={seed}"]


def ask(address: str, clip: Path, max_pixels: int, question: Question) -> bool | None:
    """Ask by the command line, print what comes, and tell whether it is right; None where no answer came."""
    given = ["generate", "--address", address, "--video", str(clip), "--max-pixels", str(max_pixels)]
    given += ["--text", question.text, "--max-tokens", "64"]
    print("$ " + shlex.join(["preprocessor", *given]), flush=True)
    answered = subprocess.run([*PREPROCESSOR, *given, "--json"], stdout=subprocess.PIPE, check=False)
    if answered.returncode:
        return None
    found = json.loads(answered.stdout)
    is_right = bool(found["text"] == question.answer)
    verdict = "right" if is_right else f"wrong: {question.answer}"
    item = found["items"][0]
    width_px, height_px = item["size_px"]
    print(f"{found['text']}    [{verdict}]", flush=True)
    print(
        f"{found['token_count']} tokens in, {len(found['token_ids'])} out; {len(item['frame_indices'])} frames of "
        f"{width_px}x{height_px}\n",
        flush=True,
    )
    return is_right


@contextmanager
def triton(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """A Triton; yields its address and the service's further options."""
    checkpoint = write_checkpoint(directory)
    say("starting Triton with vlm_transformers")
    with TritonServer(["vlm_transformers"], environment={"VLM_CHECKPOINT": str(checkpoint)}) as server:
        yield server.grpc_address, ["--model", str(checkpoint)]


@contextmanager
def vllm(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """A vLLM, as `triton`."""
    from deploy.vllm.local_server import VllmServer

    checkpoint = write_checkpoint(directory)
    say("starting vLLM; a start takes one to three minutes")
    with VllmServer(checkpoint) as server:
        yield f"vllm://{server.address}", ["--model", str(checkpoint)]


def write_checkpoint(directory: Path) -> Path:
    from deploy.demo_model.checkpoint import write_folder  # it imports torch

    folder = directory / "demo-model"
    write_folder(folder)
    return folder


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


def seed_number(text: str) -> int:
    """The number of a clip that the model was not trained on."""
    seed = int(text)
    if not 0 <= seed < HELD_OUT_SEEDS:
        raise argparse.ArgumentTypeError(
            f"{text} is not accepted; give a number from 0 to {HELD_OUT_SEEDS - 1}: the model was trained on clips beyond"
        )
    return seed


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo",
        epilog="exit status: 0 if every answer is right; 1 if one is missing or wrong, which may be the model's own mistake",
    )
    parser.add_argument("engine", nargs="?", choices=ENGINES, default="triton", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=seed_number, help=f"the clip's number, below {HELD_OUT_SEEDS:,}; default: a random one"
    )
    return parser


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = build_parser().parse_args()
    sys.exit(main(arguments.engine, arguments.seed))
