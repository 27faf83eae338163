"""The bytes of a shard, wherever it lies: the protocol, local files, globs.

May import: configs.
"""
