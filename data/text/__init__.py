"""Documents -> rows of tokens.

May import: configs, configs.sections, data, data.index, data.order.
"""
