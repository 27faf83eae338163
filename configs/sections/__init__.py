"""The sections of a recipe that are long enough for a file of their own.

May import: configs.
"""
