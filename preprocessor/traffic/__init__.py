"""A load generator for a running service, with an open or a closed loop, and its results.

A closed loop has a fixed number of callers, each of which sends its next request after the response to the last one. If the
service stalls, fewer requests are sent, and those that would have waited are missing from the latencies ("coordinated omission").
An open loop sends requests at a rate that does not depend on the service, and measures latency from the time at which a request
was due, so a request that is sent late, because too many were open, counts the delay.

`load` describes a load, `schedule` gives the times, `callers` sends requests, `tally` counts, `processes` distributes the load
over processes, `seed` makes a clip. Nothing here loads torch.
"""
