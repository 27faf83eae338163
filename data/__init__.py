"""Data: shards -> index -> order -> fetch -> decode -> batches. numpy only."""
