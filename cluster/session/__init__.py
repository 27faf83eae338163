"""The process that holds Ray for one `stoker train`, started anew when Ray breaks.

May import: cluster.forks, cluster.processes, cluster.ray_cluster, cluster.run, cluster.workers, configs.
"""
