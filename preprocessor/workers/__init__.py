"""Where CPU-bound tasks run, so that the event loop only moves bytes."""
