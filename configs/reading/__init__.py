"""A recipe as it is read: YAML that knows its lines, what is wrong with it, and the user's own Python files.

May import: configs, configs.sections.
"""
