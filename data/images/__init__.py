"""Encoded images -> rows of pixels.

May import: configs, configs.sections, data, data.index, data.order.
"""
