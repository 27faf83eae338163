"""Shards in object stores and on web servers: ranges, retries, a cache shared by the ranks of a node.

May import: configs, configs.sections, data, data.shards.
"""
