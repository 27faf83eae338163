"""The state of a run <-> bytes in a store, complete, verified and published at once.

May import: cluster.run, configs, data, trainer.engine, trainer.rank.
"""
