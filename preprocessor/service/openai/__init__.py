"""OpenAI's chat completions over HTTP, in front of `Generate`. Off unless `--openai-address` is set.

A request becomes the same `GenerateSpec` that a gRPC caller sends, and `PreprocessorServicer.generate` serves it inside the same
`AuthInterceptor`. A handler sees an HTTP request as a gRPC context (`context`), so admission, tokens, quotas, upload slots,
deadlines, memory, metrics and traces are those of a gRPC call. A gRPC call of its own over loopback would have needed none of
`context`, but it copies every file once more, and its caller would be this process: addresses and certificates would be lost.

Only the order of a request differs: in JSON a file may come before the parameters that say what it is for. So `body` reads the
JSON as it arrives and moves each file into the arena at once; the text that remains is read when it is complete.

| file | |
|---|---|
| `server` | the listening socket, connections, routes |
| `context` | an HTTP request as a gRPC context |
| `body`, `base64_text` | JSON with files, as it arrives → text and files |
| `chat`, `media`, `parameters`, `fields` | the JSON → `GenerateSpec` |
| `exchange` | one request: its spec, and its responses as JSON or as server-sent events |
| `answers`, `tool_calls` | `GenerateResponse` → OpenAI's objects |
| `errors` | gRPC statuses → OpenAI's errors |
"""
