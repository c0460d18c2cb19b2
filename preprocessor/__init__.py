"""Preprocessing for vision-language models. Imports nothing: every worker process pays for what stands here."""

__version__ = "0.2.0"
