"""Real Tritons with a model for each way that pixels may come, and services that send them so."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.triton.local_server import REPOSITORY, TritonServer
from tests.bench.service.watched import WatchedServer

DEPLOYED = REPOSITORY / "vlm_transformers"
FORMS = ("uint8", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Way:
    """How the pixels of a prompt travel.

    Attributes:
        form: What they are when they leave the service.
        takes_pieces: Whether the model takes them in pieces; otherwise they go in one message.
        transport: `grpc` or `shared-memory`, as `--engine-transport` has it.
    """

    form: str
    takes_pieces: bool
    transport: str

    @property
    def model(self) -> str:
        return f"vlm_{self.form}_{'pieces' if self.takes_pieces else 'whole'}"

    @property
    def name(self) -> str:
        how = "one message" if not self.takes_pieces else "pieces"
        return f"{self.form}, {'shared memory' if self.transport == 'shared-memory' else how}"


DEFAULT = Way("uint8", True, "shared-memory")
WAYS = tuple(
    Way(form, takes_pieces, transport)
    for form in FORMS
    for takes_pieces, transport in ((False, "grpc"), (True, "grpc"), (True, "shared-memory"))
)


@contextmanager
def triton(models: Iterable[tuple[str, bool]], checkpoint: Path, folder: Path) -> Iterator[TritonServer]:
    """A server with a model for each (form, whether it takes pieces), all with the weights of `checkpoint`."""
    names = []
    for form, takes_pieces in models:
        names.append(Way(form, takes_pieces, "").model)
        _write_model(folder / names[-1], form, takes_pieces)
    environment = {"VLM_CHECKPOINT": str(checkpoint)}
    with TritonServer(names, repository=folder, environment=environment, ready_timeout_seconds=300) as server:
        yield server


@contextmanager
def services(ways: Iterable[Way], address: str, folder: Path, *options: str) -> Iterator[Mapping[Way, WatchedServer]]:
    """For each way a `preprocessor serve` in front of that engine, started side by side."""
    servers = {}
    for way in ways:
        profile = folder / f"{way.form}.toml"
        profile.write_text(f'pixel_form = "{way.form}"\n')
        engine = ("--engine", address, "--engine-model", way.model, "--engine-transport", way.transport)
        servers[way] = WatchedServer(*options, "--cache-share", "0", *engine, "--engine-profile", str(profile))
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as starting:
        yield dict(zip(servers, starting.map(stack.enter_context, servers.values()), strict=True))


def worker_count() -> int:
    """A core is left for the engine, and one of every four for callers and the services' own processes."""
    return max(1, len(os.sched_getaffinity(0)) * 3 // 4)


def _write_model(folder: Path, form: str, takes_pieces: bool) -> None:
    """The deployed model, changed in what it takes."""
    shutil.copytree(DEPLOYED, folder)
    config = folder / "config.pbtxt"
    text = _replaced(config.read_text(), r'name: "vlm_transformers"', f'name: "{folder.name}"')
    if not takes_pieces:
        text = _replaced(text, r'\{ name: "first_row".*\n', "\n")
    if form != "uint8":
        text = _replaced(text, r'("pixel_patches" +data_type: )TYPE_UINT8', rf"\g<1>TYPE_{form.upper()}")
        text += f'parameters [ {{ key: "pixel_form" value: {{ string_value: "{form}" }} }} ]\n'
        (folder / "1" / "model.py").rename(folder / "1" / "served.py")
        shutil.copy(Path(__file__).parent / "float_model.py", folder / "1" / "model.py")
    config.write_text(text)


def _replaced(text: str, pattern: str, by: str) -> str:
    changed, count = re.subn(pattern, by, text)
    assert count == 1, f"{count} × {pattern} in the deployed config.pbtxt"
    return changed
