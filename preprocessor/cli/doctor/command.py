"""`preprocessor doctor`: checks of the machine, files and engines that `serve` with the same options would use, each with a fix.

Exit status: 0 if the service would start and work, with or without warnings; 1 if it would not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from preprocessor.cli.doctor.finding import Finding, Verdict, failed, ok, worst
from preprocessor.cli.sources import load_settings
from preprocessor.config import SettingError


def run(options: argparse.Namespace) -> int:
    findings = _examine(options)
    if options.json:
        print(json.dumps({"verdict": worst(findings), "checks": [dataclasses.asdict(one) for one in findings]}))
    else:
        print(_listed(findings))
    return int(worst(findings) is Verdict.FAILED)


def _examine(options: argparse.Namespace) -> list[Finding]:
    try:
        loaded = load_settings(options)
    except SettingError as error:
        from preprocessor.cli.doctor.examine import examine_software

        return [failed("settings", str(error), "correct it: `serve` does not start like this"), *examine_software()]
    from preprocessor.cli.doctor.examine import (
        examine,
    )  # takes seconds to import torch; a wrong setting is reported before

    given = len(loaded.given.values)
    found = f"accepted; {given} given, the rest by default; `preprocessor serve --show-config` lists them"
    return [ok("settings", found), *examine(loaded.settings)]


def _listed(findings: Sequence[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.verdict:<8} {finding.name:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<8} {'':<{width}}  → {finding.fix}")
    counts = Counter(finding.verdict for finding in findings)
    return "\n".join([*lines, "", ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)])
