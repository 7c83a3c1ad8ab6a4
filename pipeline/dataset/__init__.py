"""The dataset's files: Arrow schema, shards, manifest and data card; and a built dataset as later steps read it."""
