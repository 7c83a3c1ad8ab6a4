"""Reading M-BEIR: files, rows, pools, instructions, qrels, images; counting, checking and downloading it."""
