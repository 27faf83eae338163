"""Shards -> a table of their samples, numbered in shard order.

May import: configs, configs.sections, data, data.remote, data.shards.
"""
