"""Ray's own processes: a private Ray is started, another's is joined, its nodes are checked or drained.

May import: cluster.hosts, cluster.processes, configs.
"""
