"""The files of the models in `deploy/triton/models`, as modules.

A version directory is no package name for an import statement, and those of two models would both be the package `1`: so
each is imported under a name of its own.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from deploy.triton.local_server import REPOSITORY


def model_file(model: str, name: str) -> ModuleType:
    """A file of a model's version directory, by its name without the ending."""
    package = f"{model}_1"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(REPOSITORY / model / "1")]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{name}")
