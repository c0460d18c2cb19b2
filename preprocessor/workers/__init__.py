"""Where CPU work runs, so that the event loop only moves bytes."""
