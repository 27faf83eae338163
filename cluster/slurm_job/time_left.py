"""How long a job has still. Slurm is asked beside the work: when many jobs are warned, its controller is slow."""

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime

from cluster.slurm.scheduler import Scheduler, time_left_s
from configs.errors import ClusterError


class TimeLeft:
    """The end of a job, known some time after this was made, if Slurm answers."""

    def __init__(self, job_id: str, scheduler: Scheduler, say: Callable[[str], None]) -> None:
        self._job_id, self._scheduler, self._say = job_id, scheduler, say
        self._asked = time.monotonic()
        self._end: float | None = None
        threading.Thread(target=self._ask, name="time-left", daemon=True).start()

    def until(self, margin_s: float) -> float:
        """The time (`time.monotonic`) that much before the end, and at least a second after the question."""
        return math.inf if self._end is None else max(self._end - margin_s, self._asked + 1.0)

    def _ask(self) -> None:
        try:
            left_s = time_left_s(self._scheduler.job(self._job_id), datetime.now())
        except ClusterError as error:
            self._say(f"how much time is left is not known: {error}")
            return
        if left_s is not None:
            self._end = time.monotonic() + left_s
            self._say(f"{left_s:.0f} s left")
