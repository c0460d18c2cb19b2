"""Prompts → token ids, and token ids → text."""
