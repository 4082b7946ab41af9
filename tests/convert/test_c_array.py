"""A bundle as C source: a C program encodes records, compands and compares as the project's own code does."""

import json
import shutil
import struct
import subprocess
from array import array
from pathlib import Path

import numpy as np
import pytest

from convert.c_array import HEADER, RECORD_HEADER, SOURCE, c_sources
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import compress, quantise
from firmware_py.inference.self_test import read_vectors
from firmware_py.micropython.compand import thresholds_into

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "zoo" / "epic-micro-64" / "bundle"
RECORDS = json.loads((ROOT / "tests" / "firmware_py" / "golden" / "records.json").read_text())
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]

# Encodes and decodes each golden record, and prints what it made; then the companding of the sums on standard input.
PROGRAM = """
#include <stdio.h>
#include "encoder.h"
#include "epic_record.h"

static const uint8_t payloads[][%(longest)d] = {%(payloads)s};
static const struct epic_record rows[] = {%(rows)s};

static void hex(const uint8_t *data, size_t n) {
    for (size_t i = 0; i < n; i++) printf("%%02x", data[i]);
    printf("\\n");
}

int main(void) {
    static uint8_t out[70000];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct epic_record record = rows[i], back;
        record.payload = payloads[i];
        size_t n = epic_record_encode(&record, out, sizeof out);
        hex(out, n);
        if (epic_record_encode(&record, out, n - 1)) return 1;
        if (!epic_record_decode(out, n, &back) || epic_record_decode(out, n - 1, &back)) return 2;
        if (back.boot != record.boot || back.sample_time_us != record.sample_time_us) return 3;
        if (back.payload_bytes != record.payload_bytes || back.type != record.type) return 4;
        if (memcmp(back.payload, record.payload, record.payload_bytes)) return 5;
        printf("%%d\\n", epic_acknowledges(&back, 7, 43) + 10 * epic_acknowledges(&back, 7, 42)
                        + 100 * epic_acknowledges(&back, 8, 42) + 1000 * epic_acknowledges(&back, 7, 44));
        out[0] = 'X';
        if (epic_record_decode(out, n, &back)) return 6;
    }
    static int32_t thresholds[255];
    epic_thresholds(1e-3, thresholds);
    for (int i = 0; i < 255; i++) printf("%%ld ", (long)thresholds[i]);
    printf("\\n");
    for (long sum = -400000; sum < 400000; sum += 997) printf("%%d ", epic_compand((int32_t)sum, thresholds));
    printf("\\n");
    hex((const uint8_t *)epic_golden_inputs, sizeof epic_golden_inputs);
    hex((const uint8_t *)epic_golden_latents, sizeof epic_golden_latents);
    printf("%%s %%zu %%d %%d\\n", EPIC_MODEL_HASH, epic_encoder_bytes, EPIC_ARENA_BYTES, EPIC_LATENT_BYTES);
    printf("%%.17g %%d %%.17g %%d\\n", EPIC_INPUT_SCALE, EPIC_INPUT_ZERO_POINT, EPIC_OUTPUT_SCALE,
           EPIC_OUTPUT_ZERO_POINT);
    return (uintptr_t)epic_encoder %% 16 != 0;
}
"""


def program() -> str:
    payloads, rows = [], []
    for row in RECORDS:
        record = row["record"]
        payload = bytes.fromhex(record["payload"])
        payloads.append("{" + ", ".join(str(byte) for byte in payload or b"\0") + "}")
        model_hash = ", ".join(str(byte) for byte in bytes.fromhex(record["model_hash"]))
        fields = [record[name] for name in ("type", "device", "survey", "boot", "sequence", "event")]
        numbers = ", ".join(f"{value}u" for value in fields)
        rows.append(f"{{{numbers}, {record['sample_time_us']}ull, {{{model_hash}}}, {len(payload)}, NULL}}")
    longest = max(len(row["record"]["payload"]) // 2 for row in RECORDS)
    return PROGRAM % {"longest": longest, "payloads": ", ".join(payloads), "rows": ", ".join(rows)}


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(BUNDLE)


@pytest.fixture(scope="module")
def sources(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    for name, data in c_sources(
        bundle.encoder_path.read_bytes(), bundle.manifest, read_vectors(bundle)
    ).items():
        (folder / name).write_bytes(data)
    (folder / "main.c").write_text(program())
    return folder


@pytest.fixture(scope="module", params=[("gcc", "c11"), ("g++", "c++11")], ids=["gcc", "g++"])
def said(request, sources):
    compiler, standard = request.param
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    binary = sources / f"main-{standard}"
    files = [str(sources / "main.c"), str(sources / SOURCE)]
    subprocess.run([compiler, f"-std={standard}", *STRICT, *files, "-o", str(binary)], check=True)
    done = subprocess.run([str(binary)], capture_output=True, text=True)
    assert done.returncode == 0, done.returncode
    return done.stdout.splitlines()


def test_records_are_those_of_the_golden_vectors(said):
    assert said[: 2 * len(RECORDS) : 2] == [row["bytes"] for row in RECORDS]
    acknowledged = dict(zip([row["what"] for row in RECORDS], said[1 : 2 * len(RECORDS) : 2], strict=True))
    assert acknowledged["acknowledgement of three"] == "11", (
        "42 itself and 43 behind it, not 44, and of boot 7 only"
    )
    assert acknowledged["latent"] == "0"


def test_companding_is_that_of_every_other_device(said, bundle):
    table = array("i", [0] * 255)
    companding = bundle.companding
    settings = (companding.k, companding.c, companding.thin)
    thresholds_into(table, settings, 1e-3, bundle.input.scale, bundle.input.zero_point)
    at = 2 * len(RECORDS)
    assert [int(word) for word in said[at].split()] == table.tolist()
    sums = np.arange(-400000, 400000, 997)
    expected = quantise(
        compress((sums * 1e-3 / companding.thin).astype(np.float32), companding),
        bundle.input.scale,
        bundle.input.zero_point,
    )
    found = np.array([int(word) for word in said[at + 1].split()])
    # float32 here and double there: a sum within rounding of a threshold may be one step apart.
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01
    assert found.min() < -100 and found.max() > 100


def test_golden_vectors_quantisation_and_arena_are_the_bundle_s(said, bundle):
    inputs, latents = read_vectors(bundle)
    at = 2 * len(RECORDS) + 2
    assert said[at] == inputs.tobytes().hex()
    assert said[at + 1] == latents.tobytes().hex()
    size = bundle.encoder_path.stat().st_size
    arena_bytes = bundle.manifest["arena_bytes"]
    assert said[at + 2] == f"{bundle.model_hash.hex()} {size} {arena_bytes} {latents.shape[2]}"
    words = said[at + 3].split()
    assert (float(words[0]), int(words[1])) == (bundle.input.scale, bundle.input.zero_point)
    assert (float(words[2]), int(words[3])) == (bundle.output.scale, bundle.output.zero_point)


def test_it_compiles_for_a_cortex_m(sources):
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("needs arm-none-eabi-gcc (Debian: gcc-arm-none-eabi)")
    target = ["-mcpu=cortex-m7", "-mthumb", "-std=c11", *STRICT, "-c"]
    for name in (SOURCE, "main.c"):
        subprocess.run(["arm-none-eabi-gcc", *target, name, "-o", f"{name}.o"], cwd=sources, check=True)


def test_an_arena_that_was_not_measured_is_left_out(bundle):
    fields = {**bundle.manifest, "arena_bytes": None}
    header = c_sources(b"model", fields, read_vectors(bundle))[HEADER].decode()
    assert "#define EPIC_ARENA_BYTES" not in header and "was not measured" in header


def test_the_header_s_numbers_are_the_protocol_s():
    from firmware_py.protocol import packet

    text = (ROOT / "convert" / "c" / RECORD_HEADER).read_text()
    assert f"#define EPIC_RECORD_HEADER_BYTES {struct.calcsize(packet.HEADER)}\n" in text
    names = ("LATENT", "ACK", "HELLO", "HEALTH", "UPDATE", "REFUSAL", "RECORDING")
    assert [getattr(packet, name) for name in names] == list(packet.TYPES)
    for name in names:
        assert f"EPIC_{name} = {getattr(packet, name)}" in text
    assert f"data[3] > EPIC_{names[-1]}" in text
