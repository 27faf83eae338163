"""A host's health, measured with torch.

May import: cluster.hosts, cluster.slurm, cluster.slurm_job, configs.
"""
