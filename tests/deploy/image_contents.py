"""What is in the image: libraries, packages, users and files, compared with the lists of this repository and with the base."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Set
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

import preprocessor
from deploy.pins import OF_ANOTHER_INDEX
from tests.deploy.tools import DEPLOY

_MOST_BYTES = 1_300_000_000
_OURS = "opt/preprocessor"
# Of these `apt` in the base needs the first, too.
_ASKED_PACKAGES = {"libseccomp2", "tini"}
_USER = "1000:1000"
_ADDED_USERS = {f"preprocessor:x:{_USER}::/tmp:/usr/sbin/nologin"}
_TOOLS = ("gcc", "cc", "ld", "uv", "pip", "git", "curl", "wget")
_PROGRAM_FOLDERS = ("usr/bin", "usr/local/bin", f"{_OURS}/bin")
# Beside what is ours and what its packages brought: what installing packages and adding a user writes.
_WRITTEN_BY_THE_WAY = re.compile(
    r"etc/(hosts|(passwd|group|shadow|gshadow|subuid|subgid)-?|ld\.so\.cache)|var/(lib/dpkg|log)/.*|var/lib/apt/extended_states"
)


def check_contents(root: Path, base: Path, config: dict[str, Any]) -> str:
    """Compare.

    Args:
        root: The image's.
        base: That of the image that it was built on.
        config: The image's configuration.
    Returns:
        What is in it, in a line.
    Raises:
        SystemExit: What differs, and from what.
    """
    size_bytes = int(_output("du", "-sxb", root).split()[0])
    libraries = set(_installed(root))
    ours = root / _OURS
    expected = {*_pinned(), f"vlm-preprocessor=={preprocessor.__version__}"}
    tools = {f"{folder}/{name}" for folder in _PROGRAM_FOLDERS for name in _TOOLS if (root / folder / name).exists()}
    troubles = [
        *_difference("libraries", libraries, expected),
        *_difference("Debian's packages", _packages(root), _packages(base) | _ASKED_PACKAGES),
        *_difference("the user", {config["User"]}, {_USER}),
        *_difference("users beside the base's", _users(root) - _users(base), _ADDED_USERS),
        *_difference("files that nothing installed", _unknown_files(root, base)),
        *_difference("tools", tools),
        *_difference("set-user-id programs of ours", _found(ours, "-perm", "/6000")),
        *_difference("files that everybody may write", _found(root, "-xdev", "-type", "f", "-perm", "-0002")),
        *_difference("files of the service's user", _found(root, "-xdev", "-uid", _USER.split(":")[0])),
        *_difference("sources of ours", _found(*_own_packages(root), "-name", "*.[ch]", "-o", "-name", "*.proto")),
        *_difference("repositories", _found(ours, "-name", ".git")),
    ]
    if size_bytes > _MOST_BYTES:
        troubles.append(f"it has {size_bytes / 1e9:.2f} GB, more than {_MOST_BYTES / 1e9:.1f}")
    if troubles:
        raise SystemExit("the image is not as it should be:\n" + "\n".join(troubles))
    programs = sorted(path.name for path in (ours / "bin").iterdir())
    return f"{size_bytes / 1e9:.2f} GB, {len(libraries)} libraries; programs: {' '.join(programs)}"


def _site_packages(root: Path) -> Path:
    return next(root.glob(f"{_OURS}/lib/python3.*/site-packages"))


def _own_packages(root: Path) -> list[Path]:
    return [_site_packages(root) / name for name in ("preprocessor", "engine_client")]


def _installed(root: Path) -> Iterator[str]:
    for one in distributions(path=[str(_site_packages(root))]):
        yield f"{canonicalize_name(one.metadata['Name'])}=={one.version.split('+')[0]}"


def _pinned() -> Iterator[str]:
    yield from (line.split()[0] for line in (DEPLOY / "requirements.txt").read_text().splitlines() if "==" in line)
    for line in (DEPLOY / "constraints.txt").read_text().splitlines():
        if line.split("==")[0] in OF_ANOTHER_INDEX:
            yield line


def _packages(root: Path) -> set[str]:
    return set(re.findall(r"^Package: (\S+)$", (root / "var/lib/dpkg/status").read_text(), re.MULTILINE))


def _users(root: Path) -> set[str]:
    return set((root / "etc/passwd").read_text().splitlines())


def _unknown_files(root: Path, base: Path) -> set[str]:
    """Files that neither the base has nor what is installed on it."""
    packaged = {
        line[1:]
        for name in _ASKED_PACKAGES
        for path in (root / "var/lib/dpkg/info").glob(f"{name}[.:]*list")
        for line in path.read_text().splitlines()
    }
    return {
        path
        for path in _files(root) - _files(base) - packaged
        if not path.startswith(f"{_OURS}/") and not _WRITTEN_BY_THE_WAY.fullmatch(path)
    }


def _files(root: Path) -> set[str]:
    """All but directories, relative to the root."""
    return {str(Path(folder, name).relative_to(root)) for folder, _, names in os.walk(root) for name in names}


def _found(*arguments: str | Path) -> set[str]:
    return set(_output("find", *arguments).split())


def _difference(what: str, found: Set[str], expected: Set[str] = frozenset()) -> Iterator[str]:
    if found != expected:
        yield f"{what}: too many {sorted(found - expected)[:50]}, missing {sorted(expected - found)}"


def _output(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout
