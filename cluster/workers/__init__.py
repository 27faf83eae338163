"""Ray Train: the worker group, its shells, restarts and the hang rule. The only room that imports ray.train.

May import: cluster.forks, cluster.hosts, cluster.ray_cluster, cluster.run, configs.
"""
