"""What a run has found, to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.fuzz.run import OK, Findings, Settings
from tests.fuzz.targets import Target


def render(findings: Findings, settings: Settings, targets: Mapping[int, Target]) -> str:
    """Counts by format and reason, deaths of workers by signal, and what failed with how to see it again."""
    lines = [
        f"{findings.count} cases in {findings.seconds:.0f} s ({findings.count / max(findings.seconds, 1e-9):.1f} a second), "
        f"seed {settings.seed}, from {settings.first} on",
        "",
    ]
    by_reason: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    for (kind, reason), count in findings.outcomes.items():
        by_reason[reason] += count
        by_kind.setdefault(_format_of(kind), Counter())[reason] += count
    lines += [f"{count:7} {reason}" for reason, count in by_reason.most_common()]
    lines += ["", "by format: answered / refused"]
    for kind, reasons in sorted(by_kind.items()):
        refused = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common() if reason != OK)
        lines.append(f"  {kind}: {reasons[OK]} / {refused}")
    for target in dict.fromkeys(targets.values()):
        lines.append(f"worker deaths: {dict(target.log.deaths) or 'none'}")
    lines += ["slowest:", *(f"  {took:.1f} s: {what}" for took, what in reversed(findings.slowest))]
    if findings.lost:
        lines += ["killed two workers (WORKER_LOST), kept:", *(f"  {one}" for one in findings.lost)]
    again = f"make fuzz FUZZ_SEED={settings.seed} FUZZ_FIRST=NUMBER FUZZ_COUNT=1"
    if findings.failures:
        lines += ["", f"{len(findings.failures)} FAILURES; kept in {settings.folder}; again: {again}"]
        lines += [f"  {one}" for one in findings.failures]
    else:
        lines += ["", "no failure"]
    return "\n".join(lines)


def _format_of(kind: str) -> str:
    """The seed's name; of an image its format alone, for there are many kinds of each."""
    return " ".join(kind.split()[:2]) if kind.startswith("image ") else kind
