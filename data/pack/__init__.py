"""Files, tables and arrays -> train and val shards."""
