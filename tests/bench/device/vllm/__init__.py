"""vLLM fed by this service through its own gRPC, beside `vllm serve`, which reads the same files itself.

checkpoint   the model's folder, in full size or tiny
servers      real vLLM servers as processes
systems      the ways to get an answer, each behind the same interface
bound        the same tensors again and again, made once: what the engine could do
plan         which cells are measured, the most important first
cell         one cell: some callers who ask again and again
stacks       where vLLM's processes spend their time, by py-spy
report       tables from the figures
"""
