"""What the image installs, with versions and SHA-256 digests of wheels: `make lock` writes deploy/requirements.txt.

python -m deploy.pins UV FOLDER      ask the index, by the program `uv`; write requirements.txt and installer.txt

torch and torchvision are left out, with what only their CUDA builds need: the image takes their CPU builds, which have an
index of their own. The wheels listed are those that the image's Python can use on x86_64; hdrhistogram has none for aarch64.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name, parse_wheel_filename

_REPOSITORY = Path(__file__).parents[1]
PYTHON = "3.11"
INSTALLER = "uv==0.13.9"
OF_ANOTHER_INDEX = ("torch", "torchvision")
_FOR_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
_PLATFORM = re.compile(r"any|(manylinux|linux).*_x86_64")
_MACHINE = "x86_64-manylinux_2_28"
_OPTIONS = ("--python-version", PYTHON, "--only-binary", ":all:", "--format", "pylock.toml")
_HEAD = "# Written by `make lock` from pyproject.toml and constraints.txt.\n"


def main() -> int:
    """Run the command; returns its exit status."""
    uv, folder = sys.argv[1], Path(sys.argv[2])
    service = ("pyproject.toml", "--extra", "serve", "--constraint", "deploy/constraints.txt")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as installer:
        installer.write(INSTALLER)
        installer.flush()
        for name, given in (("requirements.txt", service), ("installer.txt", (installer.name,))):
            (folder / name).write_text(_HEAD + "".join(pins(_resolve(uv, *given))))
    return 0


def pins(packages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a requirements file.

    Args:
        packages: As in pylock.toml.
    Raises:
        ValueError: A package has no wheel for the image.
    """
    digests: dict[str, set[str]] = {}
    for package in packages:
        name = canonicalize_name(package["name"])
        if name in OF_ANOTHER_INDEX or _FOR_CUDA.fullmatch(name):
            continue
        usable = {wheel["hashes"]["sha256"] for wheel in package["wheels"] if _is_usable(_file_name(wheel))}
        if not usable:
            raise ValueError(f"{name} {package['version']} has no wheel for the image")
        digests.setdefault(f"{name}=={package['version']}", set()).update(usable)
    for pin, found in sorted(digests.items()):
        yield " \\\n".join([pin, *(f"    --hash=sha256:{one}" for one in sorted(found))]) + "\n"


def _resolve(uv: str, *given: str) -> list[dict[str, Any]]:
    command = (uv, "pip", "compile", "--quiet", *given, *_OPTIONS, "--python-platform", _MACHINE)
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY).stdout
    packages: list[dict[str, Any]] = tomllib.loads(found)["packages"]
    return packages


def _file_name(wheel: Mapping[str, Any]) -> str:
    return str(wheel.get("name") or Path(wheel.get("path") or wheel["url"]).name).split("#")[0].replace("%2B", "+")


def _is_usable(file_name: str) -> bool:
    """Whether the image's Python can use a wheel."""
    *_, tags = parse_wheel_filename(file_name)
    minor = int(PYTHON.split(".")[1])
    for tag in tags:
        version = re.fullmatch(r"(?:cp|py)3(\d*)", tag.interpreter)
        if version is None or not _PLATFORM.fullmatch(tag.platform):
            continue
        is_own = tag.abi == f"cp3{minor}" or (tag.abi == "none" and tag.interpreter in ("py3", f"py3{minor}"))
        if is_own or (tag.abi == "abi3" and int(version[1]) <= minor):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
