"""What both models here do with a prompt, whichever engine is behind them.

    contract   the engine contract's tensors, checked                              pure
    rows       the rows of one prompt, whole or as they come                       pure
    arrival    one prompt from its first message to the moment when it is whole    pure
    errors     what a prompt can be refused for                                    pure
    answers    one answer, to its end: steps, errors, counts                       knows Triton
    intake     messages to prompts: who has a place, who left, who is overdue      knows Triton

A model's version folder holds this one as the link `prompts`: Triton imports a model as the package of its version, and
so `from .prompts.contract import …` finds it wherever the model is served from. It lies beside the model repository and
not in it, because Triton takes every folder there for a model.
"""
