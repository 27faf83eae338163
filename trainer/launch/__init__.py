"""The driver's side: what comes before the workers and around them. Never imports training/.

May import: cluster.hosts, cluster.processes, cluster.run, cluster.session, cluster.slurm, cluster.workers, configs,
configs.reading, configs.sections, data, data.index, data.text, trainer, trainer.checkpoint, trainer.engine,
trainer.history, trainer.huggingface, trainer.models, trainer.rank, trainer.tasks.
"""
