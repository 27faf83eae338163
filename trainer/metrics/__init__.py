"""The figures of a step -> files, TensorBoard, the terminal.

May import: cluster.run, configs, data, trainer.engine, trainer.history, trainer.rank, trainer.step_health.
"""
