"""Keep the recordings that an operator gave, one file an event: ``data_dir/recordings/surveyN-eventNNNNNN.npy``.

``epic central check --gather`` and ``refine --gather`` keep theirs, so that the page can show it. Those that devices
sent are in the database (``store.py``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from central.storage.database import StoreError
from physics.files.atomic import atomic_write

FOLDER = "recordings"


def given_path(data_dir: Path, survey: int, event: int) -> Path:
    """Return the path of an event's recording; there is a file if one was given."""
    return data_dir / FOLDER / f"survey{survey}-event{event:06d}.npy"


def keep_given(data_dir: Path, survey: int, event: int, gather: np.ndarray) -> Path:
    """Keep an event's recording in the place of an earlier one; the file appears when it is whole.

    Args:
        data_dir: Folder of the centre's store.
        survey: Number of the survey.
        event: Number of the event.
        gather: ``(S, T, R)`` float32; dead traces are NaN.

    Returns:
        The file.

    Raises:
        StoreError: The file cannot be written.
    """
    path = given_path(data_dir, survey, event)
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, gather.astype(np.float32))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}); free space there") from None
    return path


def read_given(data_dir: Path, survey: int, event: int) -> np.ndarray | None:
    """Return an event's recording ``(S, T, R)`` float32, memory-mapped; None if the store has none.

    Raises:
        StoreError: The file is damaged.
    """
    path = given_path(data_dir, survey, event)
    try:
        gather = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: damaged ({error}); remove it, and check the event again") from None
    if gather.ndim != 3 or gather.dtype != np.float32:
        raise StoreError(
            f"{path}: expected float32 (sources, samples, receivers), got {gather.dtype} {gather.shape}; remove it"
        )
    return gather
