"""The lower bounds in pyproject.toml satisfy the generated code. `make test-lowest` installs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from deploy.bounds import generated_with, lower_bounds, too_low

PROJECT = """
[project]
name = "ours"
dependencies = ["grpcio>=1.85,<2", "protobuf>=7.35.1,<8", "pinned==3"]
[project.optional-dependencies]
serve = ["served>=5"]
dev = ["ours[serve]", "protobuf>=7.36", "linux-only>=0.1; sys_platform == 'linux'"]
"""


def test_the_lower_bound_of_each_library_is_found_and_the_higher_of_two_counts() -> None:
    bounds = {name: str(version) for name, version in lower_bounds(PROJECT).items()}
    assert bounds == {"grpcio": "1.85", "protobuf": "7.36", "pinned": "3", "served": "5", "linux-only": "0.1"}


def test_a_library_without_a_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="anything<2"):
        lower_bounds(PROJECT.replace("pinned==3", "anything<2"))


def test_a_bound_below_the_generated_code_s_requirement_is_reported(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_pb2_grpc.py").write_text("import grpc\nGRPC_GENERATED_VERSION = '1.85.1'\n")
    (tmp_path / "preprocessor_pb2.py").write_text("# source: x\n# Protobuf Python Version: 7.35.1\n")
    [sentence] = too_low(lower_bounds(PROJECT), generated_with(tmp_path))
    assert "grpcio>=1.85, but preprocessor/v1 needs 1.85.1" in sentence


def test_versions_are_compared_as_versions() -> None:
    assert not list(too_low({"grpcio": Version("1.100")}, {"grpcio": Version("1.85.1")}))


def test_generated_code_without_a_version_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_pb2_grpc.py").write_text("import grpc\n")
    with pytest.raises(ValueError, match="grpcio"):
        generated_with(tmp_path)
