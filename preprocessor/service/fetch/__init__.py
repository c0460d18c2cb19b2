"""Media that a request names by URL.

A caller who may name a URL makes this service send a request that the caller could not send: to the cloud's metadata, to a
neighbour that trusts the network, to itself. So everything is off until a deployment allows it, and these rules hold:

* A URL is read once, strictly (`urls`), and what was read is what is asked for. What two parsers could read differently
  (user names, backslashes, spaces, numbers that are not quite addresses, letters beyond ASCII) is refused rather than mended.
* Names are resolved once a connection. Addresses are judged (`addresses`) where the socket is made, the last place before the
  connection: whatever a name's server answered earlier or elsewhere does not count.
* A redirect is a new URL: all rules again, and never from https down to http.
* Nothing goes along: no credentials, no cookies, no proxy of the environment, no header of the caller.
* Nothing is inflated: files come as they are, or not at all (`web`). Bytes are counted as they arrive, against the same
  limits as an upload, into the same memory (`sink`).
* What a file is shows in its bytes. A name's ending and a host's content type are not looked at.
* Every wait has an end: connecting, silence, the whole file, the call's own deadline. A caller who leaves ends it at once.
* Messages name the medium, and at most a host: what else stands in a URL may be a secret, and what an address resolves to is
  none of the caller's business.

| file | |
|---|---|
| `fetcher` | which URL goes where; how many at once; what is counted |
| `urls`, `addresses`, `web` | http and https |
| `files`, `stores` | file: below configured directories; object stores, through fsspec |
| `data_urls` | data:, which needs no fetching |
| `sink` | where the bytes go |
"""
