"""Maps of the fake decoder's survey, put into a store as a centre leaves them: for tests of the page."""

from contextlib import closing

import numpy as np
from fake_decoder import MODEL_HASH, SURVEY

from central.storage.map_store import NewMap, Store


def put_map(
    data_dir,
    event,
    devices=(0, 1, 2, 3, 4),
    survey=1,
    model=MODEL_HASH,
    velocity_mps=2000.0,
    last_record=None,
    **provenance,
):
    shape = SURVEY.map_shape[1:]
    content = {
        "devices": list(devices),
        "model_hash": model.hex(),
        "sample_time_us": 1_700_000_000_000_000 + event,
        "received_bytes": 200 * len(devices),
        "acquisition": SURVEY.to_dict(),
        **provenance,
    }
    velocity = np.full(shape, velocity_mps, np.float32)
    velocity[0, 1] = 1600.0
    new = NewMap(
        (survey, event, model),
        5 * event if last_record is None else last_record,
        len(devices) < SURVEY.n_devices,
        velocity,
        np.full(shape, 80.0, np.float32),
        content,
    )
    with closing(Store(data_dir)) as store:
        store.put([new])
