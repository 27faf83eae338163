"""Whether shards hold what they say, byte for byte and sample for sample.

May import: configs, configs.sections, data, data.images, data.index, data.pack, data.shards, data.text.
"""
