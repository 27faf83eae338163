"""Training: models, engine, checkpoints, figures, and the commands. The files here are the command line itself.

May import: configs, trainer.commands.
"""
