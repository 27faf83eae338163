"""The nn.Modules that ship with Stoker, and what they cost to train.

May import: configs.sections.
"""
