"""The embedder: backbone, `<|emb|>` token, LoRA, and the losses that fit it."""
