"""Slurm as the login node and a job see it: what it is asked, what a job script says, what is decided.

May import: cluster.hosts, cluster.run, configs, configs.sections.
"""
