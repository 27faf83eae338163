"""What the records of a run tell. All pure but for reading them; no torch.

May import: cluster.run, configs.
"""
