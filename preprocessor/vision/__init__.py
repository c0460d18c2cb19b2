"""Frames → rows and positions. Knows a vision encoder's geometry; knows nothing of files."""
