"""The programs of deploy/examples, run as they stand there against a service."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import load_file

from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.client import Prompt, chat, video
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, serving
from tests.service.node import FOLDER, PROTOS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy/examples"
OWN_PYTHON = ROOT / "build/examples/bin/python"
ANSWER = "A red circle."
QUESTION = "What happens?"

needs_own_python = pytest.mark.skipif(
    not OWN_PYTHON.exists(), reason="no Ray and Jupyter; `make examples` sets them up"
)


@pytest_asyncio.fixture(scope="module")
async def service(model: Model) -> AsyncIterator[Caller]:
    """A service whose engine always gives the same answer."""
    async with serving(model, FakeEngine(model.tokenizer.encode(ANSWER))) as one:
        yield one


async def run(*command: str | Path, cwd: Path = ROOT, status: int = 0, **environment: str) -> tuple[str, str]:
    """Standard output and standard error of a program."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == status, errors.decode()
    return output.decode(), errors.decode()


async def example(name: str, *arguments: str | Path, status: int = 0) -> tuple[str, str]:
    return await run(sys.executable, EXAMPLES / name, *arguments, status=status)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with a clip, another one in a folder, and a file that is none; names end in small letters or in capitals."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    (folder / "one.mp4").write_bytes(moving_shapes_clip(seconds=2, width=160, height=120))
    (folder / "more" / "two.MP4").write_bytes(moving_shapes_clip(seconds=1, width=160, height=120, seed=1))
    (folder / "bad.MP4").write_bytes(b"no clip")
    (folder / "notes.txt").write_text("no clip either")
    return folder


def expected(model: Model, clip: Path) -> dict[str, np.ndarray]:
    prompt: Prompt = chat([{"role": "user", "content": [video(clip, fps=2), QUESTION]}])
    return dict(pipeline.prepare(model, read_spec(prompt.spec)[0]).tensors)


def check_saved(path: Path, tensors: dict[str, np.ndarray]) -> None:
    saved = load_file(path)
    assert saved.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)


async def test_ask(service: Caller, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo())
    output, errors = await example("ask.py", service.server.address, tmp_path / "photo.jpg", QUESTION)
    assert output == f"{ANSWER}\n"
    assert "tokens in the prompt" in errors
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    _, errors = await example("ask.py", service.server.address, tmp_path / "photo.jpg", QUESTION, status=1)
    assert errors.startswith("NOT_MEDIA: ")


async def test_ask_many(service: Caller, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(photo(64, 64, seed=number) if number else b"no photo")
    files = [tmp_path / f"{number}.jpg" for number in range(12)]
    output, errors = await example("ask_many.py", service.server.address, QUESTION, *files)
    assert set(output.splitlines()) == {f"{path}: {ANSWER}" for path in files[1:]}
    assert errors.startswith(f"{files[0]}: NOT_MEDIA: ")


async def test_prepare_folder_goes_on_where_it_was_stopped(
    service: Caller, model: Model, clips: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    asked = ("prepare_folder.py", service.server.address, clips, results, QUESTION)
    _, errors = await example(*asked)
    assert "3/3" in errors
    check_saved(results / "one.mp4.safetensors", expected(model, clips / "one.mp4"))
    check_saved(results / "more/two.MP4.safetensors", expected(model, clips / "more/two.MP4"))
    assert (results / "bad.MP4.error").read_text().startswith("NOT_MEDIA: ")
    (results / "one.mp4.safetensors").rename(results / "one.mp4.part")  # as if it had been stopped while writing
    kept = (results / "more/two.MP4.safetensors").stat()
    _, errors = await example(*asked)
    assert "1/1" in errors
    assert (results / "more/two.MP4.safetensors").stat() == kept
    assert sorted(path.name for path in results.iterdir()) == ["bad.MP4.error", "more", "one.mp4.safetensors"]


async def test_prepare_folder_blames_no_clip_for_a_service_that_is_not_there(clips: Path, tmp_path: Path) -> None:
    _, errors = await example("prepare_folder.py", "127.0.0.1:1", clips, tmp_path / "results", QUESTION, status=1)
    assert "UNAVAILABLE" in errors
    assert not list((tmp_path / "results").rglob("*.error"))


async def test_camera_gives_windows_of_frames_with_their_times(service: Caller, model: Model, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(moving_shapes_clip(seconds=6, width=160, height=120))
    engine = service.server.engine
    assert isinstance(engine, FakeEngine)
    before = len(engine.requests)
    output, _ = await example("camera.py", service.server.address, tmp_path / "film.mp4")
    assert output.splitlines() == [f"0.0 to 3.5 s: {ANSWER}", f"4.0 to 5.5 s: {ANSWER}"]
    texts = [model.tokenizer.decode(request.tensors["input_ids"].tolist()) for request in engine.requests[before:]]
    assert [text.count(" seconds>") for text in texts] == [4, 2], "two frames a step, at two frames a second"
    assert all("<0.2 seconds>" in text for text in texts), "times count from the window's first frame"


async def test_node_asks(service: Caller, node: str, tmp_path: Path) -> None:
    (FOLDER / "ask.mjs").write_text((EXAMPLES / "ask.mjs").read_text())
    (tmp_path / "photo.jpg").write_bytes(photo())
    asked = (node, FOLDER / "ask.mjs", service.server.address, tmp_path / "photo.jpg", QUESTION)
    assert (await run(*asked, PROTOS=str(PROTOS)))[0] == f"{ANSWER}\n"
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    _, errors = await run(*asked, PROTOS=str(PROTOS), status=1)
    assert "photo" in errors


@pytest.fixture
def short_folder() -> Iterator[str]:
    """A path so short that Ray's sockets fit into it."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield folder


@pytest.mark.slow
@needs_own_python
async def test_a_ray_cluster_prepares_a_folder(model: Model, clips: Path, tmp_path: Path, short_folder: str) -> None:
    results = tmp_path / "results"
    asked = (OWN_PYTHON, EXAMPLES / "ray_folder.py", "qwen3-vl", clips, results, QUESTION)
    local: dict[str, Any] = {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": short_folder,
    }
    output, _ = await run(*asked, **local)
    told = dict(line.split(": ", 1) for line in output.splitlines())
    tensors = expected(model, clips / "one.mp4")
    assert told["one.mp4"] == f"{len(tensors['input_ids'])} tokens"
    assert told["bad.MP4"].startswith("NOT_MEDIA: ")
    check_saved(results / "one.mp4.safetensors", tensors)
    output, _ = await run(*asked, **local)
    assert "one.mp4" not in output, "it has a result"


@pytest.mark.slow
@needs_own_python
async def test_the_notebook_runs(service: Caller, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(moving_shapes_clip(seconds=4, width=320, height=240))
    (tmp_path / "tour.ipynb").write_text((EXAMPLES / "tour.ipynb").read_text())
    arguments = ("-m", "nbconvert", "--execute", "--to", "html", "tour.ipynb")
    await run(OWN_PYTHON, *arguments, cwd=tmp_path, ADDRESS=service.server.address)
    page = (tmp_path / "tour.html").read_text()
    assert ANSWER in page
    assert page.count("data:image/png;base64,") >= 2, "it has drawn frames"
    assert "Traceback" not in page
