"""What both ends of the wire agree on: the sender of a prompt, and the model that answers it.

    tensors     names, types and shapes of a prompt's tensors
    sampling    how tokens are chosen, and the tensors that say so
    layout      what a row is in a family of models, and how rows and placeholders belong together
    prompt      the tensors of one prompt, checked against the model's configuration
    held        by what a model finds again what it has of an item
    rows        the rows of one prompt's pixels, whole or in pieces
    assembler   one prompt from its first message until all of it is there
    vllm_rules, vllm_families, vllm_fields
                what vLLM needs of a prompt beside all that; which models it takes; the tensors that it takes of an item
    published   what a model says of how it was set up
    errors      why a prompt is not answered

An inference server loads this package too, in a Python environment of its own. So it needs Python 3.10, numpy 1.26 and
nothing else, imports nothing from the rest of `engine_client`, and does no input or output.
"""
