"""What may change a result from one release to the next: library versions and a model's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

_LIBRARIES = ("av", "pillow", "torch", "numpy", "tokenizers", "transformers", "opencv-python-headless")


def library_versions() -> dict[str, str]:
    """Installed version of every library that pixels and ids depend on."""
    return {library: version(library) for library in _LIBRARIES}


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names and contents, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
