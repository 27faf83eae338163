"""One file per command: arguments in, words out, no logic.

May import: cluster.cloud, cluster.hosts, cluster.ray_cluster, cluster.run, cluster.session, cluster.slurm,
cluster.slurm_job, configs, configs.reading, configs.sections, data, data.index, data.pack, data.pack_inputs,
data.verify, trainer, trainer.checkpoint, trainer.history, trainer.host_health, trainer.huggingface, trainer.launch,
trainer.rank, trainer.step_health.
"""
