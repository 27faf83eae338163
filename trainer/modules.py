"""What a training process imports; here, so that the driver can name it without importing it."""

WORKER_MODULES = ["trainer.worker", "deepspeed"]
