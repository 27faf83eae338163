"""Linux processes, signals, locks and private folders. Knows nothing of Ray, Slurm or runs.

May import: configs.
"""
