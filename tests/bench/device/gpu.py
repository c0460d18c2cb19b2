"""How much of the time the GPU runs a kernel, by NVIDIA's own counter: its share over each fifth of a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FETCH_SECONDS = 1.0  # the driver keeps some 20 s


class BusyShares:
    """Samples of one GPU since it was made: when each was taken, and the share of its fifth of a second that was busy."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self._shares: dict[int, float] = {}

    def fetch(self) -> None:
        _, samples = self._nvml.nvmlDeviceGetSamples(self._handle, self._nvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
        for sample in samples:
            self._shares[sample.timeStamp] = sample.sampleValue.uiVal / 100

    def mean(self, began_at: float, ended_at: float) -> float:
        """Between two `time.time()`.

        Raises:
            ValueError: No sample lies there.
        """
        self.fetch()
        shares = [share for microseconds, share in self._shares.items() if began_at <= microseconds / 1e6 <= ended_at]
        if not shares:
            raise ValueError(f"none of {len(self._shares)} samples lies between {began_at} and {ended_at}")
        return sum(shares) / len(shares)


@contextmanager
def watched() -> Iterator[list[BusyShares]]:
    """Samples of every GPU are fetched while this lasts. None without NVIDIA's driver and `pynvml` (package nvidia-ml-py)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # ImportError, or NVMLError, which cannot be named without it
        print(f"no GPU is watched: {error!r}")
        yield []
        return
    gpus = [BusyShares(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    is_over = threading.Event()

    def fetch() -> None:
        while not is_over.wait(_FETCH_SECONDS):
            for gpu in gpus:
                gpu.fetch()

    fetching = threading.Thread(target=fetch)
    fetching.start()
    try:
        yield gpus
    finally:
        is_over.set()
        fetching.join()
        pynvml.nvmlShutdown()
