"""Is a step, a sample or a rank bad, and what is done about it.

May import: cluster.run, configs, data, trainer.engine, trainer.rank.
"""
