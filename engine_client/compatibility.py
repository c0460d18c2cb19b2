"""What must hold between a sender and an engine before the first prompt: tensors and fingerprint, checked together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from engine_client.contract.published import published_parts
from engine_client.errors import EngineMismatch
from engine_client.fingerprint import Fingerprint
from engine_client.types import EngineInfo

logger = logging.getLogger(__name__)


class CompatibilityCheck:
    """Checks one engine, as often as is asked for; differences that do not exclude it are logged once.

    Args:
        who: Starts the messages; names the engine.
        find_mismatches: Names every difference between the tensors that are sent and those that the engine declares; None
            leaves the tensors unchecked.
        fingerprint: None compares nothing.
    """

    def __init__(
        self,
        who: str,
        find_mismatches: Callable[[EngineInfo], Sequence[str]] | None,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._who = who
        self._find_mismatches = find_mismatches
        self._fingerprint = fingerprint
        self._logged: list[str] = []

    @property
    def is_trivial(self) -> bool:
        """Whether there is nothing to check."""
        return self._find_mismatches is None and self._fingerprint is None

    def require(self, info: EngineInfo) -> None:
        """Return if the engine fits.

        Raises:
            EngineMismatch: it does not; every difference is named, with both sides.
        """
        mismatches = [] if self._find_mismatches is None else list(self._find_mismatches(info))
        warnings: list[str] = []
        if self._fingerprint is not None:
            comparison = self._fingerprint.compare(info.parameters)
            mismatches += comparison.refused
            warnings += comparison.warned
            if not comparison.refused and not published_parts(info.parameters):
                warnings.append("it publishes no fingerprint, so nothing of that was compared")
            elif not comparison.refused and comparison.not_compared:
                left_out = ", ".join(comparison.not_compared)
                warnings.append(f"its fingerprint leaves out {left_out}, so that was not compared")
        if warnings != self._logged:
            self._logged = warnings
            for warning in warnings:
                logger.warning("%s: %s", self._who, warning)
        if mismatches:
            raise EngineMismatch(self._who, mismatches)
