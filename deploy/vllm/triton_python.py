"""Makes one Python environment that both Triton 24.10 and vLLM take, of what `make triton` and `make vllm` have installed.

That Triton's Python backend misreads arrays of numpy 2, and vLLM is installed with numpy 2 but runs with 1.26 too. So this
environment has the numpy of `.triton/venv` in front of all packages of `.vllm/venv`. Nothing is copied.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRITON, VLLM = ROOT / ".triton/venv", ROOT / ".vllm/venv"


def make_environment(folder: Path) -> Path:
    """Write it.

    Args:
        folder: Where; made if it is missing.
    Returns:
        Its interpreter, for `TritonServer`.
    Raises:
        FileNotFoundError: one of the two is not installed, or they are of different Pythons.
    """
    packages = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for installed, hint in ((TRITON, "make triton"), (VLLM, "make vllm")):
        if not (installed / packages).is_dir():
            raise FileNotFoundError(f"{installed / packages} is missing: run {hint}")
    (folder / packages).mkdir(parents=True)
    for part in (TRITON / packages).glob("numpy*"):
        (folder / packages / part.name).symlink_to(part.resolve())
    # Behind this folder on the path, and with the .pth files in it.
    (folder / packages / "vllm.pth").write_text(f"import site; site.addsitedir({str((VLLM / packages).resolve())!r})\n")
    (folder / "pyvenv.cfg").write_text((VLLM / "pyvenv.cfg").read_text())
    (folder / "bin").mkdir()
    for name in ("python", "python3"):  # Triton's stub looks for the second
        (folder / "bin" / name).symlink_to((VLLM / "bin/python").resolve())
    return folder / "bin/python"
