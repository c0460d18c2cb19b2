"""From a request to a prompt that an engine can run. `pipeline.pipeline` tells the story; what it calls lies beside it."""

from preprocessor.pipeline.pipeline import AnnounceRows, allocate_pixels, plan, prepare, write_pixels

__all__ = ["AnnounceRows", "allocate_pixels", "plan", "prepare", "write_pixels"]
