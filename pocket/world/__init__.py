"""The pocket world: a synthetic miniature M-BEIR of coloured shapes, garments and invented entities.

Reading order: `lexicon` (words), `scene`, `garment`, `encyclopedia` (contents), `draw` (images), `language`, `passages`,
`edits` and `garment_edits` (texts), `datasets` (queries and candidates per dataset), `builder` and `write` (files),
`ground_truth` (for tests and measurements only).

Every function that samples takes a `random.Random`, so the seed alone decides a sample.
"""
