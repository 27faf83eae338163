"""Weights to and from Hugging Face.

May import: cluster.run, configs, configs.sections, data, data.text, trainer.checkpoint, trainer.engine, trainer.models,
trainer.rank, trainer.tasks.
"""
