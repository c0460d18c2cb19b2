"""What pip-audit has found, in words: `make audit`.

python -m deploy.audit PIP_AUDIT REQUIREMENTS [--if-possible] [ignored vulnerabilities …]

Exit status 1 where a vulnerability is known, by default with a fix or without. With `--if-possible`, as CI asks, only one that
has a fix counts, and it is no failure that the index cannot be asked; what happened is said in any case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    program, requirements, *rest = arguments
    is_lenient = "--if-possible" in rest
    ignored = [part for one in rest if one != "--if-possible" for part in ("--ignore-vuln", one)]
    command = [program, "--no-deps", "--disable-pip", "--requirement", requirements, "--format", "json", *ignored]
    run = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        libraries = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit: nothing was looked up, as the index cannot be asked: {run.stderr.strip()[-300:]}")
        return int(not is_lenient)
    lines, is_bad = verdict(libraries, is_lenient=is_lenient)
    print(*lines, sep="\n")
    return int(is_bad)


def verdict(libraries: Sequence[dict[str, Any]], *, is_lenient: bool) -> tuple[list[str], bool]:
    """What is to be said, and whether it is a failure.

    Args:
        libraries: `dependencies` of pip-audit's JSON.
        is_lenient: As `--if-possible`.
    """
    unknown = [one for one in libraries if "skip_reason" in one]
    lines = [f"audit: {len(libraries) - len(unknown)} of {len(libraries)} libraries were looked up"]
    if unknown:
        lines.append(f"audit: not looked up: {', '.join(one['name'] for one in unknown)}")
        lines.append(f"audit: of the first: {unknown[0]['skip_reason']}")
    is_bad = bool(unknown) and not is_lenient
    for library in libraries:
        for found in library.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"])
            lines.append(
                f"audit: {library['name']} {library['version']}: {found['id']}, "
                + (f"fixed in {fixed}" if fixed else "not fixed")
            )
            is_bad |= bool(fixed) or not is_lenient
    if not is_bad and len(unknown) < len(libraries):
        lines.append("audit: no known vulnerability" + (" that has a fix" if is_lenient else ""))
    return lines, is_bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
