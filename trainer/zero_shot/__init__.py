"""The zero-shot suite of LamRA's and TRACE's tables: readers of the published files, and scorers on vectors."""
