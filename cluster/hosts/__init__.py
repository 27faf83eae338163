"""What one host has, and whether it is fit to take part in a run.

May import: configs.
"""
