"""A model and its data -> loss, metrics, samples. The core knows a task, and no model by name.

May import: configs, configs.reading, configs.sections, data, data.text, trainer, trainer.models.
"""
