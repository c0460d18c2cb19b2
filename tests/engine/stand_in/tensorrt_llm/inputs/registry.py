from typing import Any

import torch


def maybe_compute_mm_embed_cumsum(
    prompt_token_ids: list[int], extra_processed_inputs: dict[str, Any], input_processor: Any
) -> None:
    ids = torch.as_tensor(prompt_token_ids)
    placeholders = input_processor.get_mm_token_ids()
    if placeholders is None:
        mask = ids >= input_processor.config.text_config.vocab_size
    else:
        mask = torch.isin(ids, torch.tensor(placeholders))
    extra_processed_inputs["multimodal_data"]["multimodal_embed_mask_cumsum"] = mask.cumsum(0, dtype=torch.int64)
