"""Fronts: processes that share the public gRPC port, so that one event loop does not carry all callers' bytes.

    callers ══ gRPC, TLS ══> front ──┐
    callers ══ gRPC, TLS ══> front ──┼── frames over a pair of sockets ──> the service
    callers ══ gRPC, TLS ══> front ──┘                                     (pool, budget, quotas, metrics, readiness)

The kernel gives each new connection to one of them (SO_REUSEPORT). A front decodes no message and decides nothing: it tells the
service who calls (peer, names in the certificate, metadata, time left), reads a caller's next message when the service asks for
one, and sends what the service answers. So limits, refusals and quotas are the service's own, and hold over all fronts together.
Rows of pixels do not pass through the service: it says where they lie, and the front reads them from the same shared memory.

| file | contents |
|---|---|
| `supervisor` | the fronts of a service, in the place of its gRPC server: started, replaced, stopped |
| `process` | one front as the service sees it: its process and sockets |
| `connection` | the service's side of its frames: calls begun, run and cancelled |
| `context` | one call there, as a gRPC context |
| `front` | the other side: what a front's process runs |
| `relay` | one call there |
| `rows` | rows out of shared memory |
| `frames` | what is said between the two |

Nobody else can speak to the service this way: each pair of sockets is made before the front is started, and has no address.
A front is trusted as the service is, and not sandboxed: it reads the pixels of all callers, and decodes no file.
"""
