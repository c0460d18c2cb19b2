"""What the models in `deploy/triton/models` share. It runs inside Triton's Python backend and needs PyTorch there.

    receiver   messages to prompts: admission, stops, time limits
    answers    one answer, to its end: tokens, errors, counts
    item_cache what a model has of items, kept for prompts without pixels
    parameters the parameters of `config.pbtxt`
    rows       rows in the memory of a torch device, and the floats that they stand for
    video_markers   what a model declares of the markers around a video

Of the rest of `engine_client` it imports `engine_client.contract` alone.
"""
