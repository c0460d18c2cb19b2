"""Requests put on a running service, in an open or a closed loop, and what came of them.

A closed loop keeps so many callers busy: each asks again once it is answered, so a service that stalls is asked less, and
the requests that it would have kept waiting are missing from the figures ("coordinated omission"). An open loop asks at a
rate that the service does not influence, and counts every latency from the moment at which the request was due: one that
could not be sent in time because others were still open is that much later.

`load` says what to do, `schedule` when, `callers` does it, `tally` counts, `processes` divides it, `seed` makes a clip.
Nothing here loads torch.
"""
