from dataclasses import dataclass


@dataclass(kw_only=True)
class KvCacheConfig:
    """The real one forbids other names too."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float = 0.9
    dtype: str = "auto"
