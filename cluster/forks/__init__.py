"""A training process forked from a warm parent, and the line between its two ends.

May import: cluster.processes, cluster.run, configs.
"""
