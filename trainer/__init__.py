"""The TRACE embedder: data, model, training, embedding, retrieval, evaluation, release.

Tensors end in their dimensions, one letter each (`logits_BV`):

    B rows of a forward pass    L length in tokens    D width of states and embeddings    V vocabulary
    Q queries                   C candidates          T labelled tokens, of all rows
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a command opens a file or a caller its own
