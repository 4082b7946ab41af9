"""A recording as the field leaves it, of a survey's own line: volts, another sampling, another origin."""

from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition

# What a recorder makes of a gather as modelled, and where the line stands.
VOLTS = 3.7e-3
ORIGIN_M = 2350
STEP = 2


def write_segy(path: Path, gather: np.ndarray, acquisition: Acquisition) -> None:
    """``gather (S, T, R)`` shot by shot, sampled half as often, x in centimetres from another origin."""
    import segyio

    recorded = (VOLTS * gather[:, ::STEP]).astype(np.float32)
    interval_us = round(1e6 * acquisition.dt_s) * STEP
    spec = segyio.spec()
    spec.samples, spec.format = np.arange(recorded.shape[1]), 5
    spec.tracecount = acquisition.n_sources * acquisition.n_receivers
    with segyio.create(path, spec) as file:
        file.bin[segyio.BinField.Interval] = interval_us
        for trace in range(spec.tracecount):
            source, receiver = divmod(trace, acquisition.n_receivers)
            file.trace[trace] = np.ascontiguousarray(recorded[source, :, receiver])
            file.header[trace] = {
                segyio.TraceField.FieldRecord: source + 1,
                segyio.TraceField.SourceX: _centimetres(acquisition.source_cells[source], acquisition),
                segyio.TraceField.GroupX: _centimetres(acquisition.receiver_cells[receiver], acquisition),
                segyio.TraceField.SourceGroupScalar: -100,
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval_us,
            }


def _centimetres(cell: int, acquisition: Acquisition) -> int:
    return round(100 * (ORIGIN_M + cell * acquisition.dx_m))


def write_miniseed(path: Path, gather: np.ndarray, acquisition: Acquisition) -> tuple[list[str], list[str]]:
    """One record a receiver, the shots a minute apart; returns the receivers' ids and the shots' times."""
    import obspy

    start = obspy.UTCDateTime("2026-11-25T09:59:55")
    shots = [start + 5.0 + 60.0 * shot for shot in range(acquisition.n_sources)]
    n_samples = round((shots[-1] - start + 5.0) / acquisition.dt_s)
    stream = obspy.Stream()
    for receiver in range(acquisition.n_receivers):
        record = np.zeros(n_samples, np.float32)
        for shot, time in enumerate(shots):
            first = round((time - start) / acquisition.dt_s)
            record[first : first + acquisition.n_time] = VOLTS * gather[shot, :, receiver]
        header = {
            "network": "XX",
            "station": f"R{receiver:02d}",
            "channel": "EHZ",
            "delta": acquisition.dt_s,
            "starttime": start,
        }
        stream.append(obspy.Trace(record, header))
    stream.write(str(path), format="MSEED")
    return [trace.id for trace in stream], [str(shot) for shot in shots]
