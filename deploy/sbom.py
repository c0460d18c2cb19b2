"""What wheels carry inside, added to a list of what is installed: `make sbom`.

python -m deploy.sbom FILE      complete FILE, this environment's packages as CycloneDX in JSON

Each package gets the libraries that its own SBOM names (PEP 770), which tells what was compiled in, and the shared libraries
that lie beside its modules, with the version in their name and the SHA-256 that the wheel declares.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackagePath, distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

Component = dict[str, Any]
_TOLD = ("type", "name", "version", "purl", "licenses")
_SHARED_LIBRARY = re.compile(
    r"lib(?!.*\.(?:cpython|abi3)\b)[\w+.-]+?\.so(?:\.(?P<version>[\w.]+))?"
)  # no module of Python's


def main() -> int:
    """Run the command; returns its exit status."""
    path = Path(sys.argv[1])
    listed = json.loads(path.read_text())
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}
    count = 0
    for component in listed["components"]:
        distribution = installed.get(canonicalize_name(component["name"]))
        if distribution is not None and (found := carried(distribution)):
            component["components"] = found
            count += len(found)
    path.write_text(json.dumps(listed, indent=2) + "\n")
    print(f"sbom: {len(listed['components'])} packages, which carry {count} libraries inside: {path}")
    return 0


def carried(distribution: Distribution) -> list[Component]:
    """The components inside an installed package, without those that are its own; empty where nothing tells of any."""
    own = canonicalize_name(distribution.metadata["Name"])
    found: dict[tuple[str, ...], Component] = {}
    for file in distribution.files or ():
        if "sboms" in file.parts and file.suffix == ".json":
            told = [one for one in _told(file) if canonicalize_name(one["name"]) != own]
            found |= {(one["name"], one.get("version", ""), one.get("purl", "")): one for one in told}
        elif (matched := _SHARED_LIBRARY.fullmatch(file.name)) is not None:
            found[str(file),] = _of_file(file, matched["version"])
    if own == "av":
        import av  # FFmpeg, whose libraries' versions are not its own

        found["FFmpeg",] = {"type": "library", "name": "FFmpeg", "version": av.ffmpeg_version_info}
    return list(found.values())


def _told(file: PackagePath) -> Iterator[Component]:
    """What a wheel's own SBOM names, without its references to other parts of that file."""
    for component in json.loads(file.read_text(encoding="utf-8")).get("components", ()):
        yield {name: component[name] for name in _TOLD if component.get(name)}


def _of_file(file: PackagePath, version: str | None) -> Component:
    component: Component = {"type": "file", "name": str(file)}
    if version:
        component["version"] = version
    if file.hash is not None and file.hash.mode == "sha256":
        digest = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4)).hex()
        component["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return component


if __name__ == "__main__":
    sys.exit(main())
