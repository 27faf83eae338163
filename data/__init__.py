"""Data: shards -> index -> order -> fetch -> decode -> batches. numpy only, never torch nor ray. The files here are
what the trainer sees. Words: a shard is a tar of samples, a sample has a key and parts (txt, jpg, cls, …); a source
gives items of one set of shards, rows of tokens or images; a row is made of spans of documents. An epoch is divided
into lanes, read side by side, a lane into windows of blocks (neighbouring samples) or groups of rows, shuffled inside.
Of a remote shard a piece (1 MiB) is fetched and cached at once; a chunk is what a stream gives at a time.

May import: configs, configs.sections, data.images, data.index, data.order, data.text.
"""
