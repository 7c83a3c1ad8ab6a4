"""The pocket world: a synthetic miniature M-BEIR of coloured shapes, garments and invented entities.

Reading order: `lexicon` (words), `scene`, `garment`, `encyclopedia` (what there is), `draw` (how it looks), `language` and
`edits` (how it is spoken of), `pairs` and `knowledge` (queries and candidates per dataset), `build` and `write` (files),
`truth` (what only tests and measurements may read).

Every function that draws by chance takes a `random.Random`, so a sample is decided by its seed alone.
"""
