"""Preprocessing for vision-language models. Imports nothing: every worker process pays for what stands here."""

__version__ = "0.1.0"
