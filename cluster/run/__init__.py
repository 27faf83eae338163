"""A run on disk: its folder, lock and ledger, and the vocabulary of what is written there.

May import: cluster.processes, configs, configs.reading.
"""
