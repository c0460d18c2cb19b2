class MultimodalConfig:
    """Of releases since pull request 15640; `LLM` takes it as a dictionary too."""
