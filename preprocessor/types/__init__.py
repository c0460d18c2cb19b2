"""The data that stages pass to one another.

    asked     what a caller asks for
    found     what headers tell of its files
    planned   all of the prompt but its pixels
    made      the pixels, and the prompt with them

A `PreparationRequest` becomes a `Plan` (everything known from headers: token ids, grids, positions, sizes), and a plan with
its pixels becomes a `Prepared` prompt. All of it pickles, so that any stage may run in another process. Each file imports
only from those above it.
"""
