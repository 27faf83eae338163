"""The worker's side: the loop, and one attempt at a run.

May import: cluster.forks, cluster.run, configs, configs.reading, configs.sections, data, data.index,
trainer.checkpoint, trainer.engine, trainer.history, trainer.huggingface, trainer.metrics, trainer.rank,
trainer.step_health, trainer.tasks.
"""
