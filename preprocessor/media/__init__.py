"""Files → frames. Knows containers and codecs; knows nothing of models."""
