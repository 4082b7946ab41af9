"""An encoder on an accelerator, with a delegate that says what it was asked and leaves every operator to TFLite."""

import shutil
import subprocess

import numpy as np
import pytest
from tiny import ENCODER, SHAPE, bundle_fields

from firmware_py.inference import encoder as encoders
from firmware_py.inference.bundle import compiled_encoder, create_bundle
from firmware_py.inference.encoder import Encoder, EncoderError
from firmware_py.inference.self_test import self_test

# As TFLite's c/common.h lays a delegate out, behind the two functions that Python's load_delegate looks for.
DELEGATE = r"""
#include <cstdint>
#include <cstdio>
#include <cstdlib>
struct Delegate {
  void* data; int (*prepare)(void*, Delegate*); void* copy_from; void* copy_to; void* free_handle;
  std::int64_t flags; void* builder;
};
static int prepare(void*, Delegate*) {
  std::FILE* told = std::fopen(std::getenv("DELEGATE_TELLS"), "a");
  std::fputs("prepared\n", told);
  std::fclose(told);
  return 0;
}
extern "C" void* tflite_plugin_create_delegate(char**, char**, int, void (*report)(const char*)) {
  if (std::getenv("NOTHING_PLUGGED_IN")) { report("no device"); return nullptr; }
  return new Delegate{nullptr, prepare, nullptr, nullptr, nullptr, 0, nullptr};
}
extern "C" void tflite_plugin_destroy_delegate(void* delegate) { delete static_cast<Delegate*>(delegate); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler for the stand-in of the accelerator's library")
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "delegate.cc").write_text(DELEGATE)
    made = folder / "libedgetpu.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(folder / "delegate.cc")], check=True)
    return made


@pytest.fixture
def plugged_in(library, tmp_path, monkeypatch):
    """The file that says what the accelerator was asked."""
    told = tmp_path / "told"
    monkeypatch.setitem(encoders.DELEGATES, "edgetpu", str(library))
    monkeypatch.setenv("DELEGATE_TELLS", str(told))
    return told


def compiled(folder, model=ENCODER):
    return create_bundle(folder / "compiled", ENCODER, bundle_fields(), {compiled_encoder("edgetpu"): model})


def test_the_compiled_encoder_goes_to_the_accelerator(plugged_in, tmp_path, bundle):
    part = np.random.default_rng(0).normal(size=(*SHAPE[:2], 3)).astype(np.float32)
    latent = Encoder(compiled(tmp_path), "edgetpu").encode_recording(part)
    assert plugged_in.read_text() == "prepared\n"
    np.testing.assert_array_equal(latent, Encoder(bundle).encode_recording(part))


def test_it_is_the_compiled_file_that_is_run(plugged_in, tmp_path):
    with pytest.raises(EncoderError, match=r"encoder_edgetpu\.tflite: the runtime cannot load this model"):
        Encoder(compiled(tmp_path, b"no model"), "edgetpu")


def test_an_update_is_tested_where_it_will_run(plugged_in, tmp_path):
    self_test(compiled(tmp_path), "edgetpu")
    assert plugged_in.exists()


def test_without_an_accelerator_the_processor_encodes_as_ever(plugged_in, tmp_path):
    Encoder(compiled(tmp_path))
    assert not plugged_in.exists()


def test_a_bundle_that_was_not_compiled_says_how_to_make_one_that_is(plugged_in, bundle):
    with pytest.raises(EncoderError, match=r"expected encoder_edgetpu\.tflite .* convert with --board"):
        Encoder(bundle, "edgetpu")


@pytest.mark.parametrize("lacking", ["the library", "the accelerator"])
def test_what_is_lacking_is_said_in_one_line(lacking, plugged_in, tmp_path, monkeypatch):
    if lacking == "the library":
        monkeypatch.setitem(encoders.DELEGATES, "edgetpu", str(tmp_path / "libedgetpu.so.1"))
    else:
        monkeypatch.setenv("NOTHING_PLUGGED_IN", "1")
    with pytest.raises(
        EncoderError, match=r"no edgetpu .* and it plugged in, with this user in its group"
    ) as error:
        Encoder(compiled(tmp_path), "edgetpu")
    assert ("no device" in str(error.value)) is (lacking == "the accelerator")
