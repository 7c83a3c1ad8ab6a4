"""The TRACE embedder: data, model, training, embedding, retrieval, evaluation, release."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a command opens a file or a caller its own
