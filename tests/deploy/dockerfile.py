"""A Dockerfile as a list of instructions."""

from __future__ import annotations

import re

from tests.deploy.tools import DEPLOY


def instructions(path: str) -> list[tuple[str, str]]:
    """Keyword and text of each instruction of deploy/PATH, in order; comments are left out, continued lines are one."""
    lines = [line for line in (DEPLOY / path).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(keyword, text.strip()) for keyword, text in re.findall(r"^([A-Z]+) (.+)$", joined, re.MULTILINE)]
