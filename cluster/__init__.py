"""Processes, hosts and clusters: where training processes come from. Never torch, never a model.

May import: nothing.
"""
