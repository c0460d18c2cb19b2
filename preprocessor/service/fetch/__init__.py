"""Media that a request names by URL.

A caller who names a URL makes this service send a request that the caller could not send itself: to the cloud's metadata
service, to a neighbour that trusts the network, to the service itself (server-side request forgery). So fetching is off by
default, and these rules hold:

* A URL is parsed once, strictly (`urls`), and the request is made from the result. Whatever two parsers could read differently
  (user names, backslashes, spaces, almost-numeric hosts, non-ASCII characters) is refused, never corrected.
* Names are resolved once for each connection. Addresses are checked (`addresses`) where the socket is created, the last point
  before it connects, so an earlier or different DNS answer changes nothing.
* A redirect is a new URL: all rules apply again, and https never redirects to http.
* Nothing is added to the request: no credentials, no cookies, no proxy from the environment, no header of the caller.
* Nothing is decompressed: files are taken as they are (`web`). Bytes are counted as they arrive, against the same limits as
  uploads and into the same memory (`sink`).
* A file's type is determined by its bytes. Extension and content type are ignored.
* Every wait has a timeout: connecting, silence, the whole file, the call's deadline. Cancelling the call ends the fetch.
* Messages contain the media key, and the host at most: other parts of a URL may be secret, and a caller must not learn which
  addresses a name resolves to.

| file | |
|---|---|
| `fetcher` | the source of each scheme, concurrency, metrics |
| `urls`, `addresses`, `web` | http and https |
| `files`, `stores` | `file:` below configured directories; object stores, through fsspec |
| `data_urls` | `data:`, which needs no fetching |
| `sink` | the interfaces of sources and of what takes their bytes |
"""
