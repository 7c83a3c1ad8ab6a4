"""The embedding service: OpenAI's `/v1/embeddings` for an embedder that decides for each query whether to reason first.

app       routes, admission, answers           one event loop
batcher   accepted inputs in batches           the same loop
engine    an embedder in a process of its own; if that dies, accepted requests get an error and it is started again
"""
