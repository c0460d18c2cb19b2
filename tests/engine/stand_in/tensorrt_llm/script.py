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
"""One token made of the pixels that arrived."""

OWN_END_ID = 99
"""What the checkpoint's own configuration would say."""
