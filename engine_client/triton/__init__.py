"""An engine behind Triton's KServe v2 gRPC service.

    engine          `TritonEngine`: one request from its first message to its last token
    connect         from an address and options to a `TritonEngine`
    connection      the channel, and what is sent along with every call
    held_items      which items the engine has said that it holds
    served_model    what the engine says of its model, and whether that fits
    tensor_mapping  how its model takes prompts; mapping_files reads that from TOML; outputs of its answers
    messages        a request, cut into messages: whole or in pieces, tensors inside or by reference
    kserve          messages as bytes, with kserve_regions
    registration    the shared memory that references point into
    stream          one stream, written, read and ended
    status          errors, from gRPC statuses and from texts
    backend/        the other end: what runs inside Triton's Python backend

Importing this package imports none of them.
"""
