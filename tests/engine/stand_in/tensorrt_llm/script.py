"""How an answer goes, by the first token id of its prompt."""

COUNT_UP = 1
"""Tokens 0, 1, 2, … up to `max_tokens`."""
END_ID = 2
"""Two tokens, then `end_id`, which is left out of the answer."""
STOP_WORD = 3
"""Two tokens, then the last of `stop_token_ids`."""
FAIL = 4
"""Two tokens, then an error from the workers."""
TIME_OUT = 5
"""Two tokens, then a finish reason that the contract does not have."""
SILENT = 6
"""No token until it is aborted."""
REFUSED = 7
"""Refused when it is submitted."""
LEAVING = 8
"""Submitted to an engine that is shutting down."""
CHECKSUM = 9
"""One token made of the pixels that arrived, images before videos."""
KEYS = 10
"""In one step, what KV blocks would be keyed by: hashes, then positions and lengths of the items' runs."""
SAMPLING = 11
"""In one step: max_tokens, a thousandth of temperature and of top_p, top_k, seed."""
LINGERING = 12
"""One token, and no other until it is aborted."""

OWN_END_ID = 99
"""What the checkpoint's own configuration would say."""
