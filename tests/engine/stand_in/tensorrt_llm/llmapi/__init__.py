from dataclasses import dataclass

from tensorrt_llm.sampling_params import GuidedDecodingParams

__all__ = ["GuidedDecodingParams", "KvCacheConfig"]


@dataclass(kw_only=True)
class KvCacheConfig:
    """The real one forbids other names too."""

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float = 0.9
    dtype: str = "auto"
