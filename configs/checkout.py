"""The checkout that this code lies in: what a process elsewhere needs on its path."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
