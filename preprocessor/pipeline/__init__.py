"""From a request to a prompt that an engine can run. `pipeline.pipeline` has the whole story; the other files are its stages."""

from preprocessor.pipeline.pipeline import allocate_pixels, plan, prepare, write_pixels
from preprocessor.pipeline.write_item import AnnounceRows

__all__ = ["AnnounceRows", "allocate_pixels", "plan", "prepare", "write_pixels"]
