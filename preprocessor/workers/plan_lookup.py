"""What is known of one request's files and text when its plan is made, and what its plan adds to that."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from preprocessor.config import Limits
from preprocessor.models.loaded import PlannedItem
from preprocessor.text.encoded_text import EncodedText
from preprocessor.types.request import ChatPrompt, PreparationRequest
from preprocessor.workers.payloads import PlanPayload
from preprocessor.workers.plan_cache import PlanCache, chat_keys, plan_key


class PlanLookup:
    """One request's use of the cache.

    Args:
        scope: Requests of one scope share what is cached.
        fingerprint: Of the model; None for one that does not plan from headers, for which nothing is kept.
        request: With the digests of its files, where they are known.
    """

    def __init__(
        self, cache: PlanCache, scope: str, fingerprint: str | None, request: PreparationRequest, limits: Limits
    ) -> None:
        self._cache = cache
        self._request = request
        self._limits = limits
        self._known: dict[str, bytes] = {}
        self._keys: dict[str, bytes] = {}
        self._chat_keys: list[bytes] = []
        if not cache.is_on or fingerprint is None:
            return
        if isinstance(request.prompt, ChatPrompt):
            self._chat_keys = chat_keys(scope, request.cache_salt, request.prompt)
        for medium in request.media:
            content = medium.file_sha256
            if content is not None and medium.content_sha256 in (None, content):  # else the plan says that they differ
                self._keys[medium.key] = plan_key(scope, fingerprint, request, medium, content, limits)

    def payload(self) -> PlanPayload:
        """The payload by what is known now; what it was told once, it keeps."""
        for key in self._keys.keys() - self._known.keys():
            entry = self._cache.find(self._keys[key])
            if entry is not None:
                self._known[key] = entry
        media = tuple(
            dataclasses.replace(medium, data=b"") if medium.key in self._known else medium
            for medium in self._request.media
        )
        request = dataclasses.replace(self._request, media=media)
        return PlanPayload(request, self._limits, dict(self._known), self._known_text())

    def keep(self, result: Any) -> None:
        """Count what was known, and keep what the payload has found out; `result` is what a worker says that it returned."""
        items: dict[str, PlannedItem]
        text: EncodedText | None
        _, items, text = result
        self._cache.count(len(self._known), len(self._keys) - len(self._known))
        for key in self._keys.keys() - self._known.keys():
            if isinstance(item := items.get(key), PlannedItem):
                self._cache.add(self._keys[key], pickle.dumps(item))  # copied: arrays may lie in memory of this request
        if self._chat_keys and text is not None:
            self._cache.count_tokens(text.reused_count, len(text.token_ids) - text.reused_count)
            self._cache.add(self._chat_keys[-1], pickle.dumps(text))

    def _known_text(self) -> bytes | None:
        """As `PlanPayload.known_text`: of the longest chat with which this one begins."""
        found = (entry for key in reversed(self._chat_keys) if (entry := self._cache.find(key)) is not None)
        return next(found, b"") if self._chat_keys else None
