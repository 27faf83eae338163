"""The recipe: its schema, how it is read, and the recipes that ship with Stoker.

May import: configs.reading, configs.sections.
"""
