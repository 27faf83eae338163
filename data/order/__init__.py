"""Position -> sample. All pure.

May import: configs, data, data.index.
"""
