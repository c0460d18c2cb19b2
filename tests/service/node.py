"""Node with gRPC's packages, for what is written for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"
PACKAGES = ("@grpc/grpc-js@^1.13", "@grpc/proto-loader@^0.8")
FOLDER = PROTOS.parent / "build" / "node"  # kept, so that packages are fetched once


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with gRPC's packages beside what it is to run; skips the test where either cannot be had."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("there is no Node here")
    if not (FOLDER / "node_modules").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--prefix", str(FOLDER), "--no-audit", "--no-fund", "--no-save", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, timeout=100)
        if done.returncode:
            pytest.skip(f"npm has no gRPC for Node: {done.stderr.strip().splitlines()[-1]}")
    return found
