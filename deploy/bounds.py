"""The lowest versions that pyproject.toml allows: `make test-lowest` tests with them, `make verify` checks them.

python -m deploy.bounds            print them as pins, a constraints file for pip
python -m deploy.bounds --check    fail where the generated code refuses to run with them
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

_REPOSITORY = Path(__file__).parents[1]
_GENERATED = _REPOSITORY / "preprocessor/v1"

# What generated code says of the runtime that it needs, which it checks itself when it is imported.
_NEEDS = {
    "grpcio": ("preprocessor_pb2_grpc.py", re.compile(r"^GRPC_GENERATED_VERSION = '(\S+)'$", re.MULTILINE)),
    "protobuf": ("preprocessor_pb2.py", re.compile(r"^# Protobuf Python Version: (\S+)$", re.MULTILINE)),
}


def main() -> int:
    """Run the command; returns its exit status."""
    bounds = lower_bounds((_REPOSITORY / "pyproject.toml").read_text())
    if sys.argv[1:] == ["--check"]:
        wrong = list(too_low(bounds, generated_with(_GENERATED)))
        for sentence in wrong:
            print(sentence, file=sys.stderr)
        return min(len(wrong), 1)
    for name, version in sorted(bounds.items()):
        print(f"{name}=={version}")
    return 0


def lower_bounds(pyproject: str) -> dict[str, Version]:
    """The lowest version of each library that a project's text allows, its extras' included; the higher where two differ.

    Raises:
        ValueError: A library has no lower bound.
    """
    project = tomllib.loads(pyproject)["project"]
    bounds: dict[str, Version] = {}
    for text in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue  # an extra that includes another one
        given = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==")]
        if not given:
            raise ValueError(f"{text} has no lower bound")
        bounds[requirement.name] = max(*given, bounds.get(requirement.name, given[0]))
    return bounds


def generated_with(folder: Path) -> dict[str, Version]:
    """The lowest version of each runtime library that the generated code in a folder runs with."""
    needs = {}
    for library, (file, pattern) in _NEEDS.items():
        found = pattern.search((folder / file).read_text())
        if found is None:
            raise ValueError(f"{file} does not say which {library} it needs; look how the generator says it now")
        needs[library] = Version(found[1])
    return needs


def too_low(bounds: Mapping[str, Version], needs: Mapping[str, Version]) -> Iterator[str]:
    """A sentence for each library whose lower bound is too low."""
    for library, needed in needs.items():
        if bounds[library] < needed:
            yield f"pyproject.toml: {library}>={bounds[library]}, but preprocessor/v1 needs {needed}: raise the bound"


if __name__ == "__main__":
    sys.exit(main())
