"""One optimizer step, and the whole state as plain data. deepspeed_engine.py alone imports deepspeed; zero_layout.py
alone reads its internals.

May import: configs, configs.sections, data, trainer.models, trainer.rank, trainer.tasks.
"""
