"""The checkout that this code lies in: what a process elsewhere needs on its path."""

from pathlib import Path

__all__ = ["CHECKOUT"]


CHECKOUT = Path(__file__).parents[1]
