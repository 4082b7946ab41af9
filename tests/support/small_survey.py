"""A survey and data set so small that a network trains on it in seconds."""

from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.files.openfwi_files import create_array

SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 20,
        "n_width": 20,
        "n_time": 200,
        "source_cells": [0, 19],
        "receiver_cells": list(range(20)),
        "device_receivers": [list(range(0, 7)), list(range(7, 14)), list(range(14, 20))],
    }
)

# Few enough steps that modelling a sample takes no time.
MODELLED_SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 40,
        "n_width": 20,
        "n_time": 30,
        "source_cells": [0, 19],
        "receiver_cells": list(range(20)),
        "device_receivers": [list(range(10)), list(range(10, 20))],
    }
)


def write_data(folder: Path, count: int = 100, seed: int = 0) -> Path:
    """FlatVel-like pairs: the gather's echo time and strength tell the map's one interface."""
    rng = np.random.default_rng(seed)
    target = folder / "FlatVel_A"
    target.mkdir(parents=True)
    with (
        create_array(target / "data1.npy", (count, *SURVEY.gather_shape)) as gathers,
        create_array(target / "model1.npy", (count, *SURVEY.map_shape)) as maps,
    ):
        for i in range(count):
            depth, upper, lower = int(rng.integers(4, 16)), *rng.uniform(1600, 4400, 2)
            maps[i, 0, :depth], maps[i, 0, depth:] = upper, lower
            time = np.arange(SURVEY.n_time)[:, None]
            moveout = np.abs(np.arange(SURVEY.n_receivers) - 10)[None]
            echo = np.exp(-(((time - 10 * depth - moveout) / 8.0) ** 2)) * (lower - upper) / 1000
            direct = 20 * np.exp(-(((time - upper / 100 - 2 * moveout) / 8.0) ** 2))
            gathers[i] = echo + direct
    return folder
