"""Files, tables and arrays of users -> inputs of packing.

May import: configs, data, data.images, data.pack, data.text.
"""
