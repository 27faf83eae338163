"""Who this training process is: its rank, its attempt, what it does now, the job that it was given. No model.

May import: cluster.forks, cluster.run, configs, configs.sections.
"""
