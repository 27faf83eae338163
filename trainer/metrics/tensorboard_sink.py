"""TensorBoard event files, written in this thread.

torch's SummaryWriter writes in a thread that ends at the first full disk, and takes the training with it.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from cluster.run.run_folder import RunFolder
from trainer.metrics.full_disk_file import FullDiskFile
from trainer.metrics.sinks import TAGS

__all__ = ["TensorBoard"]


class TensorBoard:
    """One event file per attempt, with the tags of TAGS; steps after the resumed one are purged from view."""

    def __init__(self, folder: RunFolder, attempt: int, resumed_step: int) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{attempt}"
        self._file = FullDiskFile(folder.tensorboard / name)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=resumed_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, line: Mapping[str, Any]) -> None:
        """One scalar a tag at the line's step: figures, samples by source, seconds by class and by rank."""
        figures = {tag: line[key] for key, tag in TAGS.items() if key in line}
        figures |= {f"data/source/{name}": count for name, count in line.get("sources", {}).items()}
        figures |= {f"time/total_{name}_s": seconds for name, seconds in line.get("wall_s", {}).items()}
        for key in ("own_s", "data_wait_s"):
            figures |= {f"ranks/{key}/{rank}": seconds for rank, seconds in enumerate(line.get(f"rank_{key}", ()))}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(Event(step=line["step"], summary=Summary(value=values)))

    def text(self, step: int, text: str) -> None:
        """Shown under `val/sample`, in a fixed-width font."""
        metadata = create_summary_metadata("val/sample", None)
        tensor = make_tensor_proto([f"```\n{text}\n```".encode()])
        value = Summary.Value(tag="val/sample/text_summary", metadata=metadata, tensor=tensor)
        self._write(Event(step=step, summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())

    def flush(self) -> None:
        """Raises OSError when some events have no room yet."""
        self._file.sync()

    def close(self) -> None:
        """Without a `flush`."""
        self._file.close()
