"""A Slurm job from its script to its requeue: what runs on its hosts.

May import: cluster.hosts, cluster.processes, cluster.ray_cluster, cluster.run, cluster.slurm, configs,
configs.sections.
"""
