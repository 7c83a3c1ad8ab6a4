"""The ledger: the durable log of every teacher answer, and the only state of a build.

request_key   what makes two requests the same
journal       answers as they arrive: an append-only file per writer
segment       many answers, sealed: a Parquet file, written beside its place and renamed
ledger        look-ups by fingerprint, recovery, sealing
disputes      queries that used an answer which the ledger does not choose
maintenance   statistics, verification, compaction
served        which model an external server said it serves
"""
