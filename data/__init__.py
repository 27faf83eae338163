"""Data: shards -> index -> order -> fetch -> decode -> batches. numpy only, never torch nor ray. The files here are
what the trainer sees.

May import: configs, configs.sections, data.images, data.index, data.order, data.text.
"""
