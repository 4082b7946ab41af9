"""Write training figures as TensorBoard event files.

An event file is a TFRecord file of ``Event`` messages. TensorFlow writes it without the package ``tensorboard``, which
is only needed to view it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Self

# Key of a history row -> name of the curve. Names with one prefix share a section of the page.
TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_mae": "validation_mae",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
}


class EventWriter:
    """Writes rows of ``history.jsonl`` to a new event file in ``folder``; a context manager."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = tf.compat.v1.Event, tf.compat.v1.Summary
        # TensorBoard joins the files of a folder in the order of their names.
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        self._writer = tf.io.TFRecordWriter(str(path))
        self._write(file_version="brain.Event:2")

    def add(self, row: dict[str, Any]) -> None:
        """Write one row."""
        values = [
            self._summary.Value(tag=tag, simple_value=row[key]) for key, tag in TAGS.items() if key in row
        ]
        self._write(step=row["step"], summary=self._summary(value=values))

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._writer.close()
