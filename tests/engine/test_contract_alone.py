"""`engine_client.contract` where an inference server loads it: numpy beside the standard library, and an older Python."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine_client
from deploy.triton.local_server import INSTALLED
from tests.waiting import PATIENCE_SECONDS

PACKAGE = Path(engine_client.__file__).parent
SHARED = sorted((PACKAGE / "contract").glob("*.py"))
IN_TRITON = [*SHARED, *sorted((PACKAGE / "triton" / "backend").glob("*.py"))]

# Refuses whatever is neither of the standard library, nor numpy, nor of the package. Then uses every file once.
_ALONE = """
import sys
import importlib.abc

sys.path.insert(0, sys.argv[1])

class OnlyNumpy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "engine_client"}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, OnlyNumpy())
import numpy as np
for name in sys.argv[2:]:
    importlib.import_module("engine_client.contract." + name)
from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.layout import ModelLayout

class Rows:
    def allocate(self, row_count, feature_count): self.rows = np.zeros((row_count, feature_count), np.uint8)
    def write(self, first_row, rows): self.rows[first_row:first_row + len(rows)] = rows
    def read(self, start, stop): return self.rows[start:stop]

prompt = {
    "input_ids": np.array([1, 97, 2], np.int32),
    "pixel_mean": np.zeros(3, np.float32), "pixel_std": np.ones(3, np.float32),
    "grid_thw": np.array([[1, 1, 1]]), "item_modality": np.array([1], np.int32),
    "item_spans": np.array([[0, 1, 1]], np.int32), "max_tokens": np.array([7], np.int32),
}
layout = ModelLayout(1, 1, 1, 97, 98, 100, 64)
assembler = PromptAssembler(prompt, None, layout, Rows(), is_whole=False)
assembler.add_rows(0, np.array([[3, 4, 5]], np.uint8), is_last=True)
assert assembler.try_begin() and assembler.advance(lambda: None) is State.WHOLE
assert assembler.rows.between(0, 1).tolist() == [[3, 4, 5]] and assembler.sampling.max_tokens == 7
loaded = {name for name in sys.modules if name.partition(".")[0] == "engine_client"}
assert all(name == "engine_client" or name.startswith("engine_client.contract") for name in loaded), loaded
print(np.__version__)
"""


def numpy_version_alone(python: str | Path) -> str:
    """Run the program above in that Python."""
    names = [path.stem for path in SHARED if path.stem != "__init__"]
    ran = subprocess.run(
        [python, "-I", "-c", _ALONE, str(PACKAGE.parent), *names],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_it_needs_numpy_and_nothing_else() -> None:
    assert numpy_version_alone(sys.executable)


def test_it_runs_in_the_python_of_triton_s_models() -> None:
    python = Path(os.environ.get("TRITON_PYTHON", INSTALLED / "venv/bin/python"))
    assert python.exists(), "no environment of Triton's models: run make triton"
    assert numpy_version_alone(python).startswith("1.")


@pytest.mark.parametrize("path", IN_TRITON, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_it_is_written_for_python_3_10(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    newer = {"enum.StrEnum", "typing.Self", "typing.assert_never", "typing.override", "datetime.UTC"}
    assert not imported & newer
    assert "from __future__ import annotations" in path.read_text() or not imported


def test_what_runs_in_triton_imports_the_contract_numpy_and_torch_alone() -> None:
    """Also import-linter's rule; here by name, so that a new requirement is noticed where the image is described."""
    imported: set[str] = set()
    for path in IN_TRITON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    foreign = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {
        name for name in foreign if not name.startswith(("engine_client.contract", "engine_client.triton.backend"))
    } == {
        "numpy",
        "torch",
        "triton_python_backend_utils",
    }
