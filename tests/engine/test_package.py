"""The package as its users find it: on its own, documented, and with an example that runs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engine_client
from deploy.triton.local_server import TritonServer
from tests.waiting import PATIENCE_SECONDS

PACKAGE = Path(engine_client.__file__).parent
README = (PACKAGE / "README.md").read_text()
# What its README says that it needs, by the name to import.
NEEDED = {"google", "grpc", "ml_dtypes", "numpy", "smg_grpc_proto", "tritonclient"}
# Beside these, what runs in Triton's own Python finds there; `tests/engine/test_contract_alone.py` has the rest.
IN_TRITON = PACKAGE / "triton" / "backend"
_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readmes_example_prints_what_a_real_engine_answers(triton: TritonServer, tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(_BLOCKS[0])
    command = [sys.executable, str(example), triton.grpc_address]
    ran = subprocess.run(
        command, cwd=PACKAGE.parent, env={"PYTHONPATH": "."}, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr
    token_ids = ast.literal_eval(ran.stdout)
    assert 1 <= len(token_ids) <= 8
    assert all(isinstance(token_id, int) for token_id in token_ids)


def test_the_readmes_example_says_what_is_wrong_where_no_engine_is(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(_BLOCKS[0])
    command = [sys.executable, str(example), "127.0.0.1:1"]
    ran = subprocess.run(
        command, cwd=PACKAGE.parent, env={"PYTHONPATH": "."}, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("ENGINE_UNAVAILABLE: ")


def test_the_example_is_short() -> None:
    assert sum(1 for line in _BLOCKS[0].splitlines() if line.strip()) <= 20


def test_the_readme_names_every_public_name() -> None:
    names: list[str] = importlib.import_module("engine_client").__all__
    assert [name for name in names if f"`{name}`" not in README] == []
    assert all(hasattr(engine_client, name) for name in names)


def test_the_package_says_that_it_is_typed_and_ships_its_tensor_mappings() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert [
        path.stem for path in sorted(PACKAGE.glob("triton/builtin_mappings/*.toml"))
    ] == engine_client.builtin_mapping_names()


def test_it_imports_nothing_beyond_what_it_says_it_needs() -> None:
    imported: set[str] = set()
    for path in set(PACKAGE.rglob("*.py")) - set(IN_TRITON.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"engine_client"} <= NEEDED


def test_it_can_be_imported_where_nothing_else_of_this_project_can() -> None:
    others = ("preprocessor", "torch", "transformers", "cv2", "av", "aiohttp", "prometheus_client", "PIL", "tokenizers")
    block = f"import sys; sys.modules.update(dict.fromkeys({others!r})); import engine_client, engine_client.testing"
    ran = subprocess.run(
        [sys.executable, "-c", block], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr


def test_importing_the_package_imports_nothing_and_its_names_are_found_all_the_same() -> None:
    code = (
        "import sys, engine_client;"
        "assert not {'grpc', 'numpy', 'google', 'engine_client.types'} & set(sys.modules);"
        "from engine_client import *;"
        "assert TritonEngine is engine_client.TritonEngine and 'TritonEngine' in dir(engine_client)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        getattr(engine_client, "no_such_name")  # noqa: B009
