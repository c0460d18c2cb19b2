"""Another release of transformers beside the constrained one: what changed, and whether this project still equals it.

    python -m tests.parity.release latest     # or: make parity TRANSFORMERS=latest; meant for a weekly run
    python -m tests.parity.release 5.24.0 --cases 64

Makes `build/transformers`, an environment like `.venv` with that release in it. Prints which model types, processors and
settings of processors differ, then runs there the parity cases, those of families of tiles, and the generic path's tests. Ends
with 1 where one of them fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from preprocessor.models.generic.releases import NEWER_MODEL_TYPES
from preprocessor.models.generic.torchvision import settle_torchvision
from tests.parity.cases import CASE_COUNT

_REPOSITORY = Path(__file__).parents[2]
_ENVIRONMENT = _REPOSITORY / "build/transformers"
_PYTHON = _ENVIRONMENT / "bin/python"
_LIBRARIES = ("transformers", "tokenizers", "huggingface-hub", "torch", "torchvision", "pillow", "numpy")
_GENERIC_TESTS = ("test_parity.py", "test_arguments.py", "test_sound.py")

Description = dict[str, Any]
"""Versions, model types, and the settings of every processor class by its name; see `describe`."""


def describe() -> Description:
    """What can differ between two releases, of the installed one."""
    settle_torchvision()
    import transformers
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.processing_utils import ProcessorMixin

    kinds = (BaseImageProcessor, ProcessorMixin)
    classes = {}
    for name in dir(transformers):
        if name.endswith(("Processor", "ImageProcessor", "VideoProcessor")):
            one = getattr(transformers, name, None)
            if isinstance(one, type) and issubclass(one, kinds):
                classes[name] = {key: repr(value) for key, value in _settings(one)}
    versions = {library: metadata.version(library) for library in _LIBRARIES}
    return {"versions": versions, "model_types": sorted(CONFIG_MAPPING_NAMES), "classes": classes}


def _settings(kind: type) -> Iterator[tuple[str, Any]]:
    """Defaults of a class: what a model's files may leave out."""
    for name in dir(kind):
        value = getattr(kind, name, None)
        if not name.startswith("_") and isinstance(value, bool | int | float | str | list | tuple | dict):
            yield name, value


def differences(old: Description, new: Description) -> Iterator[str]:
    """A line of Markdown for each thing that differs."""
    for library, version in old["versions"].items():
        if new["versions"][library] != version:
            yield f"- {library} {version} → {new['versions'][library]}"
    yield from _changed_names("model types", old["model_types"], new["model_types"])
    yield from _changed_names("processors", old["classes"], new["classes"])
    for name in sorted(old["classes"].keys() & new["classes"].keys()):
        before, after = old["classes"][name], new["classes"][name]
        for setting in sorted(before.keys() | after.keys()):
            values = before.get(setting, "absent"), after.get(setting, "absent")
            if values[0] != values[1]:
                yield f"- {name}.{setting}: {values[0]} → {values[1]}"
    added = set(new["model_types"]) - set(old["model_types"])
    # A part of a model, such as hy_v4_vl_text, is no model that anybody serves.
    whole = {
        name for name in added if not any(name.startswith(f"{other}_") for other in added | set(old["model_types"]))
    }
    if missing := sorted(whole - NEWER_MODEL_TYPES.keys()):
        yield f"- not in NEWER_MODEL_TYPES: {', '.join(missing)}"


def _changed_names(what: str, old: Mapping[str, Any] | list[str], new: Mapping[str, Any] | list[str]) -> Iterator[str]:
    for names, verb in ((set(new) - set(old), "new"), (set(old) - set(new), "gone")):
        if names:
            yield f"- {verb} {what}: {', '.join(sorted(names))}"


def checks(case_count: int) -> list[list[str]]:
    """Arguments of Python for all that is run with the other release."""
    return [
        ["-m", "tests.parity", "--cases", str(case_count)],
        ["-m", "tests.parity.tiles"],
        ["-m", "pytest", "-q", *(f"tests/unit/generic/{name}" for name in _GENERIC_TESTS)],
    ]


def _install(release: str) -> None:
    """The environment, with everything as constrained but transformers and what it insists on."""
    python = os.environ.get("PYTHON", sys.executable)
    subprocess.run(["sh", "deploy/venv.sh", python, _ENVIRONMENT], cwd=_REPOSITORY, check=True)
    pip = [str(_PYTHON), "-m", "pip", "install", "--quiet"]
    constrained = ["--constraint", "deploy/constraints.txt", "--editable", ".[dev]"]
    subprocess.run([*pip, *constrained], cwd=_REPOSITORY, check=True)
    wanted = "transformers" if release == "latest" else f"transformers=={release}"
    # pip says that this package wants another release, and installs it all the same: that is what is to be tried.
    subprocess.run([*pip, "--upgrade", wanted], cwd=_REPOSITORY, check=True)


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.release", description=__doc__.splitlines()[0])
    parser.add_argument("release", help="a version, or latest: the newest that the package index has")
    parser.add_argument(
        "--cases", type=int, default=CASE_COUNT, metavar="COUNT", help="how many parity cases, from case 0"
    )
    options = parser.parse_args()
    if options.release == "describe":  # in either environment
        print(json.dumps(describe()))
        return 0
    _install(options.release)
    old, new = (
        json.loads(
            subprocess.run(
                [python, "-m", __spec__.name, "describe"], check=True, capture_output=True
            ).stdout.splitlines()[-1]
        )
        for python in (sys.executable, _PYTHON)
    )
    print("\n".join(differences(old, new)) or "- nothing differs", flush=True)
    statuses = [subprocess.run([_PYTHON, *check], check=False).returncode for check in checks(options.cases)]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
