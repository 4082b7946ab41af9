"""The executor for stock MicroPython gives LiteRT's reference latents, bit for bit, and allocates nothing."""

import json
import shutil

import micropython_run
import micropython_unix
import numpy as np
import pytest
from encoder_models import changed, randomised
from tiny import ENCODER, bundle_fields

from boards.fit.epicnn import compile_encoder, read_memory, reference_latents
from boards.install.micropython import cross, mcu
from firmware_py.inference.bundle import create_bundle, load_bundle
from firmware_py.inference.companding import compand, quantise
from physics.acquisition import Acquisition
from testbed.run import DEFAULT_MODEL
from testbed.samples import load_samples

pytestmark = pytest.mark.emulated
ZOO = DEFAULT_MODEL.parent
RELEASED = ("epic-micro-64", "epic-small-128", "epic-base-256")
# Of a 64-bit machine, whose objects are larger than a board's.
HEAP_BYTES = {"epic-micro-64": 100_000, "epic-small-128": 116_000, "epic-base-256": 150_000}

SCRIPT = """
import gc, json
from firmware_py.micropython.bundle import load_bundle
from firmware_py.micropython.model import ModelError
from firmware_py.micropython.runtime import open_model, reserve
try:
    import micropython
    lock, unlock = micropython.heap_lock, micropython.heap_unlock
except (ImportError, AttributeError):
    lock = unlock = lambda: None
if {plain}:
    lock = unlock = lambda: None
bundle = load_bundle("bundle")
fed = 0
def feed():
    global fed
    fed += 1
try:
    model = open_model(bundle, reserve(bundle), feed)
    gc.collect()
    latent = bytearray(model.latent)
    fed = 0
    with open("inputs.bin", "rb") as inputs, open("latents.bin", "wb") as latents:
        while inputs.readinto(model.input):
            lock()
            model.encode(latent)
            unlock()
            latents.write(latent)
    print(json.dumps({{"heap": gc.mem_alloc(), "fed": fed}}))
except ModelError as error:
    print(json.dumps({{"error": str(error)}}))
"""


def board(folder, bundle_folder, inputs, compiled=None):
    """A board's files: the manifest, the encoder compiled on the spot, and ``inputs`` to encode."""
    model = (bundle_folder / "encoder.tflite").read_bytes()
    (folder / "bundle").mkdir()
    shutil.copy(bundle_folder / "manifest.json", folder / "bundle")
    (folder / "bundle" / "encoder.epicnn").write_bytes(compiled or compile_encoder(model, inputs[:1]))
    (folder / "inputs.bin").write_bytes(inputs.tobytes())
    return reference_latents(model, inputs)


def run_unix(folder, architecture="amd64"):
    return json.loads(micropython_unix.run(folder, SCRIPT.format(plain=False), architecture))


def latents_in(folder, expected):
    return np.frombuffer((folder / "latents.bin").read_bytes(), np.int8).reshape(expected.shape)


def real_inputs(bundle):
    """What the devices encode of the shipped gathers: 100 inputs."""
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    parts = [
        sample.gather[:, :, list(group)]
        for sample in load_samples()
        for group in acquisition.device_receivers
    ]
    return np.stack(
        [
            quantise(
                compand(part, bundle.companding, bundle.width), bundle.input.scale, bundle.input.zero_point
            )
            for part in parts
        ]
    )


def random_bundle(folder, seed):
    """The smallest released encoder with other weights, biases, scales and zero points."""
    released = load_bundle(ZOO / RELEASED[0] / "bundle")
    model = randomised(released.encoder_path.read_bytes(), seed)
    fields = {
        name: released.manifest[name] for name in ("name", "companding", "acquisition", "decoder_sha256")
    }
    shapes = {"input": released.input.shape, "output": released.output.shape}
    fields |= {name: {"shape": shape, "scale": 1.0, "zero_point": 0} for name, shape in shapes.items()}
    return create_bundle(folder, model, fields)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_encoder_gives_the_reference_latents_of_recordings(tmp_path, name):
    """``benchmarks/device/micropython_encoder.py`` compares all 100 of the shipped recordings."""
    bundle = load_bundle(ZOO / name / "bundle")
    # Of every device, and of every family.
    inputs = real_inputs(bundle)[::4]
    expected = board(tmp_path, bundle.folder, inputs)
    said = run_unix(tmp_path)
    assert np.count_nonzero(latents_in(tmp_path, expected) != expected) == 0
    # Latents that hardly differ from one another would be near each other whatever was computed.
    assert expected.std(axis=0).mean() > 5
    assert said["heap"] < HEAP_BYTES[name]
    # The watchdog is fed after every block, so no inference is too long for it.
    assert said["fed"] > 10 * len(inputs)


@pytest.mark.parametrize("name", RELEASED)
def test_an_arm_processor_computes_the_same(tmp_path, name):
    bundle = load_bundle(ZOO / name / "bundle")
    expected = board(tmp_path, bundle.folder, real_inputs(bundle)[::25])
    run_unix(tmp_path, "armhf")
    np.testing.assert_array_equal(latents_in(tmp_path, expected), expected)


@pytest.mark.parametrize(
    ("architecture", "processor"),
    [("amd64", "x64"), ("armhf", "armv6m"), ("armhf", "armv7m"), ("armhf", "armv7emsp")],
)
def test_the_installer_s_machine_code_computes_the_same(tmp_path, architecture, processor):
    """That of a Pico W (armv6m), a Pico 2 W (armv7m) and a Teensy (armv7emsp) runs on a larger Arm processor too."""
    bundle = load_bundle(DEFAULT_MODEL / "bundle")
    expected = board(tmp_path, bundle.folder, real_inputs(bundle)[::20])
    for path, data in mcu.program(processor).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    script = (
        SCRIPT.format(plain=False)
        + "import sys\nassert 'firmware_py.micropython.kernels' not in sys.modules\n"
    )
    micropython_unix.run(tmp_path, script, architecture, path=f"{tmp_path}:.frozen", heap="160k")
    np.testing.assert_array_equal(latents_in(tmp_path, expected), expected)


@pytest.mark.parametrize("processor", ["armv6m", "armv7m", "armv7emsp", "armv7emdp"])
def test_no_kernel_is_so_long_that_older_firmware_s_thumb_emitter_jumps_wrongly(processor):
    """A board that compiles them itself may have MicroPython before 1.27."""
    assert all(len(kernel) < 4096 for kernel in cross.native_kernels(processor).values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("architecture", ["amd64", "armhf"])
def test_any_weights_scales_and_zero_points(tmp_path, seed, architecture):
    bundle = random_bundle(tmp_path / "made", seed)
    inputs = np.random.default_rng(seed).integers(-128, 128, (3, *bundle.input.shape[1:])).astype(np.int8)
    expected = board(tmp_path, bundle.folder, inputs)
    run_unix(tmp_path, architecture)
    np.testing.assert_array_equal(latents_in(tmp_path, expected), expected)
    assert len(np.unique(expected)) > 20


def test_without_the_emitter_it_runs_as_bytecode(tmp_path):
    bundle = create_bundle(tmp_path / "made", ENCODER, bundle_fields())
    inputs = np.random.default_rng(0).integers(-128, 128, (5, *bundle.input.shape[1:])).astype(np.int8)
    expected = board(tmp_path, bundle.folder, inputs)
    micropython_run.run(tmp_path, SCRIPT.format(plain=True))
    np.testing.assert_array_equal(latents_in(tmp_path, expected), expected)


def tiny_board(folder, change):
    """A board with the tiny encoder, compiled and then changed."""
    bundle = create_bundle(folder / "made", ENCODER, bundle_fields())
    inputs = np.zeros((1, *bundle.input.shape[1:]), np.int8)
    board(folder, bundle.folder, inputs, change(compile_encoder(ENCODER, inputs)))


def wrong_vector(compiled):
    """The same file with another latent as its golden one, its hash worked out again."""
    return changed(compiled, lambda body: body[:-1] + bytes([body[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "SHA-256 is not the file's own"),
        (lambda data: b"EPICNN9\0" + data[8:], "not a compiled encoder of this version"),
        (
            lambda data: data[:40] + bytes(8) + data[48:],
            "compiled from model 0000000000000000, the manifest says",
        ),
        (wrong_vector, "1 of 8 values of golden vector 0 differ from LiteRT's reference kernels"),
        (lambda data: data[:30], "ends too early"),
    ],
)
def test_a_board_refuses_what_is_damaged_or_computes_something_else(tmp_path, change, said):
    tiny_board(tmp_path, change)
    assert said in run_unix(tmp_path)["error"]


def test_memory_that_does_not_suffice_is_said(tmp_path):
    bundle = load_bundle(ZOO / RELEASED[2] / "bundle")
    board(tmp_path, bundle.folder, np.zeros((1, *bundle.input.shape[1:]), np.int8))
    said = json.loads(micropython_unix.run(tmp_path, SCRIPT.format(plain=False), heap="100k"))["error"]
    needed = read_memory((tmp_path / "bundle" / "encoder.epicnn").read_bytes()).total
    assert f"needs {needed} B for buffers" in said and "take a smaller model" in said
