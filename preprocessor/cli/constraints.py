"""`preprocessor constraints`: the versions this release was tested with, as pip's constraints.

Imports nothing that has to be installed: it is run before anything is, after `pip install --no-deps`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")  # a copy of deploy/constraints.txt, which is not installed


def run(_: argparse.Namespace) -> int:
    sys.stdout.write(CONSTRAINTS.read_text())
    return 0
