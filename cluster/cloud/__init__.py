"""Files for clusters that others start, and their spot notices. All pure but spot_notice.

May import: cluster.hosts, configs, configs.sections.
"""
