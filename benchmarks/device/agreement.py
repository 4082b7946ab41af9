"""How far the runtimes' latents of the same gathers are apart, in steps of int8.

    python benchmarks/device/agreement.py --data held-out [--bundle DIR] [--gathers 200] [--json]

TFLite-Micro (reference kernels) and XNNPACK (what a Linux device runs) against LiteRT's own kernels, all on this
machine; and, where `epic testbed arm64` has been run, XNNPACK on an emulated arm64 against XNNPACK here. Gathers
are taken from every family in turn, each in the parts of its devices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from boards.fit import tflm
from convert import litert
from convert.verify import compare
from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.inference.companding import compand, quantise
from physics.acquisition import Acquisition
from physics.files.openfwi_files import OpenFWIFileError, find_pairs
from testbed import arm64
from testbed.errors import TestbedError
from testbed.run import find_model

ON_ARM64 = (
    "import sys, numpy as np; from firmware_py.inference.bundle import load_bundle; "
    "from firmware_py.inference.encoder import Encoder; "
    "e = Encoder(load_bundle(sys.argv[1])); "
    "np.save(sys.argv[3], np.stack([e.encode(c).copy() for c in np.load(sys.argv[2])]))"
)


def codes_of(bundle: Bundle, gathers: list[np.ndarray], acquisition: Acquisition) -> np.ndarray:
    """``n`` gathers ``(S, T, R)`` -> what their devices encode, ``(n * devices, time, width, S)`` int8."""
    return np.stack(
        [
            quantise(
                compand(gather[:, :, list(receivers)], bundle.companding, bundle.width),
                bundle.input.scale,
                bundle.input.zero_point,
            )
            for gather in gathers
            for receivers in acquisition.device_receivers
        ]
    )


def take(data: Path, count: int, acquisition: Acquisition) -> list[np.ndarray]:
    """``count`` gathers of the OpenFWI files in ``data``, one of each family in turn. Raises ``OpenFWIFileError``."""
    opened = [pair.gathers() for pair in find_pairs(data, acquisition)]
    gathers = [
        np.asarray(file[i], np.float32)
        for i in range(max(map(len, opened)))
        for file in opened
        if i < len(file)
    ]
    if len(gathers) < count:
        raise OpenFWIFileError(
            f"{data}: expected {count} gathers, got {len(gathers)}; give fewer with --gathers"
        )
    return gathers[:count]


def on_arm64(bundle: Bundle, codes: np.ndarray) -> np.ndarray:
    """Latents of the device's encoder on the emulated processor. Raises ``TestbedError``."""
    runtime = arm64.runtime()
    with tempfile.TemporaryDirectory() as name:
        given, made = Path(name) / "codes.npy", Path(name) / "latents.npy"
        np.save(given, codes)
        command = [*runtime.command, "-c", ON_ARM64, str(bundle.folder.resolve()), str(given), str(made)]
        subprocess.run(command, env=runtime.environment, check=True)
        return np.load(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of OpenFWI files")
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the released one)")
    parser.add_argument("--gathers", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        bundle = load_bundle(given.bundle or find_model(None).bundle)
        acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
        codes = codes_of(bundle, take(given.data, given.gathers, acquisition), acquisition)
    except (BundleError, OpenFWIFileError, TestbedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = bundle.encoder_path.read_bytes()
    kernels, xnnpack = litert.run(model, codes, xnnpack=False), litert.run(model, codes)
    rows = {
        "TFLite-Micro against LiteRT's kernels": compare(
            tflm.run(model, codes, tflm.measure_arena_bytes(model)), kernels
        ),
        "XNNPACK against LiteRT's kernels": compare(xnnpack, kernels),
    }
    try:
        rows["XNNPACK on arm64 against XNNPACK here"] = compare(on_arm64(bundle, codes), xnnpack)
    except TestbedError as error:
        print(f"arm64 not compared: {error}", file=sys.stderr)
    if given.json:
        print(json.dumps({name: asdict(row) for name, row in rows.items()}))
        return 0
    print(f"{bundle.name} {bundle.model_hash.hex()}, {given.gathers} gathers, {len(codes)} parts")
    for name, row in rows.items():
        apart = f"{100 * row.differing_fraction:.3f} % of values, by at most {row.max_difference_lsb}"
        print(f"{name:<40} {apart}, over {row.latents} latents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
