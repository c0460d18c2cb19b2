"""The data that stages pass to one another.

    request   what a caller asks for
    source    facts from the headers of its files
    plan      all of the prompt but its pixels
    result    the pixels, and the prompt with them

A `PreparationRequest` becomes a `Plan` (everything known from headers: token ids, sizes, rows), and a plan with
its pixels becomes a `Prepared` prompt. All of it pickles, so that any stage may run in another process. Each file imports
only from those above it.
"""
