"""The documents of this repository, read: links, anchors, and what stands in code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}[^\n]*\n)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One Markdown file."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def prose(self) -> str:
        """The text without blocks of code."""
        return _INDENTED.sub("", _FENCE.sub("", self.text))

    @property
    def links(self) -> list[str]:
        """Targets of links and images, without those to other hosts."""
        return [target for target in _LINK.findall(_SPAN.sub("", self.prose)) if "://" not in target]

    @property
    def anchors(self) -> set[str]:
        """What a link to a heading may name: as GitHub writes it."""
        return {_anchor(heading) for heading in _HEADING.findall(self.prose)}

    @property
    def spans(self) -> list[str]:
        """What stands in backticks within the prose, on one line."""
        return [span.replace("\n", " ") for span in _SPAN.findall(self.prose)]

    @property
    def commands(self) -> Iterator[str]:
        """Lines of shell, of blocks and of spans; continued lines joined, comments cut off."""
        indented = _INDENTED.findall(_FENCE.sub("", self.text))
        fenced = [code for language, code in _FENCE.findall(self.text) if language in ("", "sh", "bash")]
        for block in indented + fenced:
            for line in block.replace("\\\n", " ").splitlines():
                yield re.split(r"\s#\s", line)[0].strip()
        yield from self.spans

    @property
    def python_blocks(self) -> list[str]:
        return [code for language, code in _FENCE.findall(self.text) if language == "python"]


def _anchor(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def tracked() -> frozenset[str]:
    """Paths of all files of the project, and of the folders they lie in; empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return frozenset()
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    return frozenset(files | {str(parent) for name in files for parent in Path(name).parents} - {"."})


@cache
def documents() -> list[Document]:
    """Every Markdown file of the project."""
    return [Document(ROOT / name) for name in sorted(tracked()) if name.endswith(".md")]
