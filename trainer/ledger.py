"""Moved to cluster/ledger.py; this name goes when every caller has followed."""

from cluster.ledger import Event, Ledger, read_json_lines

__all__ = ["Event", "Ledger", "read_json_lines"]
