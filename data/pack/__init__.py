"""Inputs -> shards with a manifest, the same bytes however it went. Nothing imports it but commands, pack_inputs and
verify.

May import: configs, data, data.index, data.shards.
"""
