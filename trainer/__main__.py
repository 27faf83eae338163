"""`python -m trainer` is the command `stoker`, where that is not installed."""

from trainer.cli import main

main()
