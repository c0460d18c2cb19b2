"""What a model has made of items, or has of them, kept for prompts that come without pixels; least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import triton_python_backend_utils as pb_utils

from engine_client.contract.errors import ItemsNotHeld
from engine_client.contract.held import HeldKey
from engine_client.triton.backend.answers import METRICS_LOCK

Value = TypeVar("Value")


class ItemCache(Generic[Value]):
    """Safe to use by several threads. What was found stays valid for its finder, even if it is dropped meanwhile.

    It counts in Triton's metrics: `vlm_held_items_total{model,result}`, items of prompts that were found (`hit`) or not (`miss`),
    and `vlm_held_bytes{model}`.

    Args:
        model_name: For metrics.
        max_bytes: What all values may take together; 0 keeps nothing.
    """

    def __init__(self, model_name: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[HeldKey, tuple[Value, int]] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._families = [
            pb_utils.MetricFamily(
                name="vlm_held_items_total",
                description="Items of prompts: held by the model (hit) or not (miss)",
                kind=pb_utils.MetricFamily.COUNTER,
            ),
            pb_utils.MetricFamily(
                name="vlm_held_bytes", description="What is held of items", kind=pb_utils.MetricFamily.GAUGE
            ),
        ]
        items, size = self._families
        self._hits, self._misses = (
            items.Metric(labels={"model": model_name, "result": result}) for result in ("hit", "miss")
        )
        self._size = size.Metric(labels={"model": model_name})

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def find(self, keys: Sequence[HeldKey], *, must_find: bool) -> Mapping[int, Value]:
        """The values of those items that are held, by index.

        Args:
            keys: Of a prompt's items.
            must_find: The prompt has no pixels.
        Raises:
            ItemsNotHeld: one is not held, and the prompt has no pixels.
        """
        found: dict[int, Value] = {}
        if self.is_on:
            with self._lock:
                for index, key in enumerate(keys):
                    if key in self._values:
                        self._values.move_to_end(key)
                        found[index] = self._values[key][0]
            with METRICS_LOCK:
                self._hits.increment(len(found))
                self._misses.increment(len(keys) - len(found))
        if must_find and (len(found) < len(keys) or not keys):
            raise ItemsNotHeld(index for index in range(len(keys)) if index not in found)
        return found

    def add(self, key: HeldKey, value: Value, size_bytes: int) -> None:
        """Keep a value, unless it is larger than all may be."""
        if size_bytes > self._max_bytes:
            return
        with self._lock:
            self._size_bytes += size_bytes - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, size_bytes)
            while self._size_bytes > self._max_bytes:
                self._size_bytes -= self._values.popitem(last=False)[1][1]
            held_bytes = self._size_bytes
        with METRICS_LOCK:
            self._size.set(held_bytes)

    def holds(self, keys: Sequence[HeldKey]) -> tuple[bool, ...]:
        """Which of the items are held now."""
        with self._lock:
            return tuple(key in self._values for key in keys)

    def close(self) -> None:
        """As `Outcomes.close`."""
        with METRICS_LOCK:
            del self._hits, self._misses, self._size
            self._families.clear()
