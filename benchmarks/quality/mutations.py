"""Plant one fault at a time in a core module, and see whether the tests beside it fail.

    python benchmarks/quality/mutations.py [--only NAME ...] [--out results.json]

Each fault is planted in a copy of the checkout, and only the named tests run. A fault counts as caught when one of
them fails. The exit code is 1 if a fault is not caught, and 2 if a fault cannot be planted or its tests cannot run.
MicroPython's tests of the encoder compiler need `.ci/packages`; `PATH` and `.micropython` are taken from the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (".micropython", ".node")


@dataclass(frozen=True)
class Mutation:
    """Replace ``right``, which occurs once in ``module``, by ``wrong``; ``tests`` should fail."""

    name: str
    module: str
    right: str
    wrong: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "assembler keeps the older latent of a device",
        "central/pipeline/assembler.py",
        "held.order < latent.order",
        "held.order > latent.order",
        ("tests/central/test_assembler.py",),
    ),
    Mutation(
        "assembler never drops emitted events",
        "central/pipeline/assembler.py",
        "if oldest.due_s >= forgotten_s and len(self) <= self._most:",
        "if True:",
        ("tests/central/test_assembler.py",),
    ),
    Mutation(
        "assembler emits an old event after a failed decoding",
        "central/pipeline/assembler.py",
        "held.last_record > event.last_record",
        "held.last_record < event.last_record",
        ("tests/central/test_assembler.py",),
    ),
    Mutation(
        "the map of a cancelled refinement is stored",
        "central/verification/refine_jobs.py",
        'raise JobError(f"job {number}: does not run any more")',
        "pass",
        (
            "tests/central/test_refine_jobs.py::test_a_map_that_is_finished_after_its_job_was_cancelled_is_not_stored",
        ),
    ),
    Mutation(
        "a refinement goes on from the checkpoint of other inputs",
        "central/verification/refine_worker.py",
        "before.inputs_sha256 == sha256",
        "before",
        ("tests/central/test_refine_jobs.py::test_a_checkpoint_that_does_not_belong_to_the_job_is_not_used",),
    ),
    Mutation(
        "the refinement of a killed worker is never taken up again",
        "central/verification/refine_worker.py",
        "        queue.put_back(interrupted=True)\n",
        "",
        (
            "tests/central/test_refine_jobs.py"
            "::test_a_job_of_a_killed_worker_is_taken_up_again_and_one_that_kills_its_process_fails_in_the_end",
        ),
    ),
    Mutation(
        "journal takes another record under a number in use for the same one",
        "central/storage/journal.py",
        "return kept == (record.event, record.model_hash, record.payload)",
        "return kept is not None",
        ("tests/central/test_journal.py",),
    ),
    Mutation(
        "journal's checksum leaves out the payload",
        "central/storage/journal.py",
        "return zlib.crc32(values[-1], zlib",
        "return zlib.crc32(b'', zlib",
        ("tests/central/test_damage.py",),
    ),
    Mutation(
        "journal counts a device's records in a transaction of their own",
        "central/storage/journal.py",
        "            self._count(new)\n        if new:",
        "        with transaction(self._database, 'count'):\n            self._count(new)\n        if new:",
        ("tests/central/test_journal.py",),
    ),
    Mutation(
        "receiver acknowledges what it could not commit",
        "central/ingest/receiver.py",
        "            time.sleep(POLL_MS / 1000)\n            return\n",
        "            committed = type('Lost', (), {'new': [], 'conflicts': set()})()\n",
        ("tests/central/test_receiver.py",),
    ),
    Mutation(
        "receiver acknowledges a conflict",
        "central/ingest/receiver.py",
        "if place in committed.conflicts:",
        "if False:",
        ("tests/central/test_receiver.py",),
    ),
    Mutation(
        "receiver believes any sender's device number",
        "central/ingest/receiver.py",
        "if sender.may_speak_for(record.survey, record.device):",
        "if True:",
        ("tests/central/test_authentication.py",),
    ),
    Mutation(
        "COBS closes a full block one byte late",
        "firmware_py/protocol/framing.py",
        "if i - block_start == 254:",
        "if i - block_start == 255:",
        ("tests/firmware_py/test_framing.py",),
    ),
    Mutation(
        "deframer believes what follows an overlong frame's beginning",
        "firmware_py/protocol/framing.py",
        "                self._overlong = True\n",
        "",
        ("tests/firmware_py/test_framing.py",),
    ),
    Mutation(
        "MAC compares the first byte alone",
        "firmware_py/protocol/frame_authenticator.py",
        "        difference |= x ^ y\n",
        "        return x == y\n",
        ("tests/firmware_py/test_framing.py",),
    ),
    Mutation(
        "spool moves on in a replay before the record is kept",
        "firmware_py/storage/spool.py",
        '            if advance:\n                self._add("position", advance)\n',
        '        if advance:\n            self._add("position", advance)\n',
        ("tests/firmware_py/test_spool.py",),
    ),
    Mutation(
        "full spool drops waiting records before refused ones",
        "firmware_py/storage/spool.py",
        "ORDER BY refused IS NULL, boot, sequence",
        "ORDER BY boot, sequence",
        ("tests/firmware_py/test_spool.py",),
    ),
    Mutation(
        "a recording is put aside before the disk has its record",
        "firmware_py/runtime/node.py",
        "self.spool.sync()\n                    self.source.done(spooled)\n",
        "self.source.done(spooled)\n                    self.spool.sync()\n",
        (
            "tests/firmware_py/test_node_trouble.py"
            "::test_a_record_travels_while_the_disk_writes_it_and_its_recording_stays_until_then",
        ),
    ),
    Mutation(
        "spool no longer syncs after the first record",
        "firmware_py/storage/spool.py",
        '        finally:\n            self._database.execute("PRAGMA synchronous = FULL")\n',
        "        finally:\n            pass\n",
        ("tests/firmware_py/test_spool.py",),
    ),
    Mutation(
        "companding cuts off instead of rounding",
        "firmware_py/inference/companding.py",
        "np.rint(values / scale)",
        "np.trunc(values / scale)",
        ("tests/firmware_py/test_compand.py",),
    ),
    Mutation(
        "decimation takes every tenth sample",
        "firmware_py/inference/companding.py",
        "blocks.mean(axis=-1, dtype=np.float32)",
        "blocks[..., 0].astype(np.float32)",
        ("tests/firmware_py/test_compand.py",),
    ),
    Mutation(
        "four bits are read as the lowest value that they stand for",
        "firmware_py/protocol/rate.py",
        "(halves << 4 | 8)",
        "(halves << 4)",
        ("tests/firmware_py/test_rate.py",),
    ),
    Mutation(
        "two values of four bits are packed the wrong way round, and read so",
        "firmware_py/protocol/rate.py",
        "(halves[::2] << 4 | halves[1::2])",
        "(halves[1::2] << 4 | halves[::2])",
        ("tests/firmware_py/test_rate.py",),
    ),
    Mutation(
        "decoder attends to absent devices",
        "models/networks/fusion.py",
        "queries, keys, attention_mask=mask",
        "queries, keys",
        ("tests/models/test_networks.py::test_absent_devices_do_not_touch_the_map",),
    ),
    Mutation(
        "OpenFWI scheme: the far neighbours have the wrong sign",
        "physics/engines/openfwi.py",
        "np.float32(4.0 / 3.0), np.float32(-1.0 / 12.0)",
        "np.float32(4.0 / 3.0), np.float32(1.0 / 12.0)",
        ("tests/physics/test_modelling.py::test_the_openfwi_engine_is_its_equations",),
    ),
    Mutation(
        "OpenFWI scheme: nothing comes in at the other side",
        "physics/engines/openfwi.py",
        "row[:HALO] = row[wide : wide + HALO]",
        "row[:HALO] = REST",
        ("tests/physics/test_modelling.py::test_a_wave_that_leaves_at_one_side_comes_in_at_the_other",),
    ),
    Mutation(
        "encoder compiler rounds a multiplier down",
        "boards/fit/epicnn.py",
        "multiplier = math.floor(fraction * (1 << 31) + 0.5)",
        "multiplier = math.floor(fraction * (1 << 31))",
        ("tests/boards/test_epicnn.py",),
    ),
    Mutation(
        "encoder compiler lets two living buffers overlap",
        "boards/fit/epicnn.py",
        "if lives[id(other)][0] <= dies and born <= lives[id(other)][1]",
        "if lives[id(other)][0] < dies and born < lives[id(other)][1]",
        ("tests/firmware_py/test_micropython_encoder.py::test_any_weights_scales_and_zero_points",),
    ),
    Mutation(
        "a model for another survey is rolled out",
        "central/updates/rollout_store.py",
        "if problems and all(problems):",
        "if False:",
        ("tests/central/test_rollout.py::test_a_model_for_another_survey_is_refused_before_it_is_signed",),
    ),
    Mutation(
        "a device takes a bundle for another survey",
        "firmware_py/runtime/run.py",
        "check_same_survey(node.bundle, bundle)",
        "pass",
        ("tests/firmware_py/test_run.py::test_an_update_for_another_survey_fails_before_it_is_in_use",),
    ),
    Mutation(
        "half a spread is imported without a word",
        "physics/gather_checks.py",
        "MAX_SILENT_SHARE = 0.25",
        "MAX_SILENT_SHARE = 1.0",
        (
            "tests/physics/test_field_formats.py::test_the_released_survey_judges_half_a_spread",
            "tests/central/test_api.py::test_a_gather_whose_map_will_be_wrong_has_a_note",
        ),
    ),
    Mutation(
        "uncertain maps are not flagged",
        "central/pipeline/provenance.py",
        "UNCERTAINTY_LIMIT = 0.1",
        "UNCERTAINTY_LIMIT = 1.0",
        ("tests/central/test_bounds.py::test_a_map_of_high_uncertainty_is_flagged_with_its_figure",),
    ),
    Mutation(
        "a model worse than the mean map is converted",
        "convert/verify.py",
        "if overall.n >= MIN_TEST_SAMPLES and verification.worse_than_mean_map:",
        "if False:",
        ("tests/convert/test_verify.py::test_a_model_that_is_no_better_than_the_mean_map_is_refused",),
    ),
    Mutation(
        "a fresh device records before its clock is set",
        "firmware_py/runtime/node.py",
        "return self.spool.boot >= EARLIEST_CLOCK_S",
        "return True",
        (
            "tests/firmware_py/test_node_trouble.py::test_a_fresh_state_without_a_clock_records_nothing_until_it_has_one",
        ),
    ),
    Mutation(
        "the hello of a boot that is behind gets no answer",
        "central/fleet/device_registry.py",
        "return self._answer_behind(record, last[0])",
        "return []",
        (
            "tests/central/test_device_registry.py::test_the_hello_of_a_boot_that_is_behind_is_told_the_newest_and_changes_nothing",
        ),
    ),
    Mutation(
        "a device goes on without its state folder",
        "firmware_py/storage/spool.py",
        "if (found.st_dev, found.st_ino) == self._file:\n                return\n        raise",
        "return\n        raise",
        (
            "tests/firmware_py/test_node_trouble.py::test_a_state_folder_that_goes_ends_the_device_and_keeps_the_recordings",
        ),
    ),
    Mutation(
        "a stream that goes on elsewhere is taken as it is",
        "physics/files/seedlink.py",
        "        if expected_ns is not None:\n            self._notify(",
        "        if False:\n            self._notify(",
        (
            "tests/physics/test_seedlink.py::test_where_the_stream_does_not_go_on_where_it_was_all_is_asked_for",
        ),
    ),
    Mutation(
        "a SeedLink client resumes with what comes next",
        "physics/files/seedlink_session.py",
        'start = moment.strftime("TIME %Y,%m,%d,%H,%M,%S")',
        'start = "DATA"',
        (
            "tests/physics/test_seedlink.py::test_a_server_that_restarts_and_numbers_its_packets_from_1_again_loses_nothing",
        ),
    ),
    Mutation(
        "a live receiver is silent once another one is past the event",
        "physics/files/seedlink.py",
        "if quiet_s < self._wait_s or clock_ns < pending.until_ns + round(self._wait_s * NS):",
        "if True:\n            return True\n        if quiet_s < 0:",
        (
            "tests/physics/test_seedlink.py::test_one_record_that_comes_after_its_successors_silences_nobody",
            "tests/physics/test_seedlink.py::test_a_backlog_that_comes_channel_after_channel_silences_nobody",
        ),
    ),
    Mutation(
        "a live record with NaN is used",
        "physics/files/live_buffers.py",
        "if not np.isfinite(values).all():",
        "if False:",
        (
            "tests/physics/test_seedlink.py::test_a_bad_receiver_is_silent_with_its_reason_and_the_event_is_written",
        ),
    ),
    Mutation(
        "dead and auxiliary traces are imported",
        "physics/files/field/line.py",
        "usable = np.isin(kinds, (*UNNAMED, *by_code))",
        "usable = np.ones(len(kinds), bool)",
        ("tests/physics/test_field_formats.py::test_dead_and_auxiliary_traces_are_left_out",),
    ),
    Mutation(
        "of repeated shots one wins",
        "physics/files/field/line.py",
        "    if not repeated:\n        return []\n    if not stack:",
        "    return []\n    if not stack:",
        ("tests/physics/test_field_formats.py::test_repeated_shots_are_refused_or_averaged",),
    ),
    Mutation(
        "missing traces are not named",
        "physics/files/field/finish.py",
        "        told.append(describe_silent(silent))",
        "        pass",
        ("tests/physics/test_field_formats.py::test_every_missing_trace_is_counted_and_named",),
    ),
    Mutation(
        "maps are stored uncompressed",
        "central/storage/map_codec.py",
        "return _ROUNDED + _compress(_planes(differences))",
        "return _EXACT + zlib.compress(_planes(values.astype('<f4')), 0)",
        ("tests/central/test_map_codec.py::test_a_map_with_texture_takes_a_quarter_of_its_float32",),
    ),
    Mutation(
        "too many events are kept",
        "central/storage/retention.py",
        "most=max(surplus, 0))",
        "most=0)",
        ("tests/central/test_retention.py::test_of_too_many_events_the_oldest_go",),
    ),
    Mutation(
        "every map is listed",
        "central/storage/map_store.py",
        "                    first = id\n",
        "                    first = 0\n",
        (
            "tests/central/test_cli.py::test_the_list_ends_with_the_last_events_and_begins_where_it_is_told_to",
        ),
    ),
    Mutation(
        "a device's text reaches the terminal as it is",
        "central/table.py",
        "Text(printable(str(cell)))",
        "str(cell)",
        ("tests/central/test_printable.py",),
    ),
    Mutation(
        "lines under a table are not escaped",
        "central/table.py",
        "console.print(Text(printable(line)))",
        "console.print(line)",
        ("tests/central/test_printable.py",),
    ),
    Mutation(
        "messages without end are not cut off",
        "central/ingest/connection_limits.py",
        "if total > MAX_UNDELIVERED_BYTES:",
        "if False:",
        (
            "tests/central/test_connection_limits.py::test_messages_without_end_are_cut_off_and_take_no_memory",
        ),
    ),
    Mutation(
        "a revoked device stays on time",
        "central/fleet/device_views.py",
        "replace(view, state=REVOKED)",
        "view",
        ("tests/central/test_devices.py::test_a_device_whose_key_was_revoked_is_not_on_time",),
    ),
    Mutation(
        "a part that arrived before a kill waits for its device",
        "central/recordings/fetching.py",
        "if one.changed or one.fresh or one.complete",
        "if one.changed or one.fresh",
        ("tests/central/test_fetching.py",),
    ),
    Mutation(
        "regions that explain nothing are kept",
        "models/inversion/waveform.py",
        "if fitted and self._is_given_up(now, best):",
        "if False:",
        ("tests/models/test_waveform.py",),
    ),
    Mutation(
        "the roughness follows the noise",
        "models/inversion/quasi_newton.py",
        "max(misfit - noise, ",
        "max(misfit, ",
        ("tests/models/test_quasi_newton.py",),
    ),
    Mutation(
        "noise counts as unexplained",
        "models/inversion/waveform.py",
        "misfit.beyond_noise(best.misfit)",
        "best.misfit",
        ("tests/models/test_waveform.py",),
    ),
    Mutation(
        "an adaptation keeps its whole change",
        "models/training/adaptation.py",
        """found["all"]["mae"] <= most_mae""",
        """found["all"]["mae"] >= 0.0""",
        ("tests/models/test_blend.py",),
    ),
    Mutation(
        "variants are all as sure",
        "central/learning/variants.py",
        "spread * rng.normal",
        "0.0 * rng.normal",
        ("tests/central/test_variants.py",),
    ),
    Mutation(
        "the journal goes on after a failed sync",
        "central/storage/journal.py",
        "if self._sync_failed:",
        "if False:",
        ("tests/central/test_journal.py",),
    ),
    Mutation(
        "a rescaled encoder keeps the decoder's old input scale",
        "models/training/standard_scale.py",
        "first.kernel * before",
        "first.kernel / before",
        ("tests/models/test_warm_start.py",),
    ),
)


def copy_checkout(folder: Path) -> None:
    """Copy the working tree's tracked files, and link the tools that tests look for beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in TOOLS:
        if (ROOT / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to((ROOT / name).resolve())


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of pytest on ``tests`` in ``folder``, and the lines that name what failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))] or lines[-3:]
    return done.returncode, "; ".join(said)


def plant(folder: Path, mutation: Mutation) -> str:
    """Write the fault; return the module's right text. Exits if it cannot be planted once."""
    path = folder / mutation.module
    text = path.read_text()
    if (found := text.count(mutation.right)) != 1:
        raise SystemExit(
            f"error: {mutation.name}: expected its text once in {mutation.module}, found it {found} times"
        )
    path.write_text(text.replace(mutation.right, mutation.wrong))
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="mutations whose name contains one of these"
    )
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    chosen = [m for m in MUTATIONS if not given.only or any(word in m.name for word in given.only)]
    if not chosen:
        parser.error(f"expected --only with a part of a mutation's name, got {given.only}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_checkout(folder)
        for mutation in chosen:
            text = plant(folder, mutation)
            began_s = time.monotonic()
            code, said = run_tests(folder, mutation.tests)
            (folder / mutation.module).write_text(text)
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                print(f"error: {mutation.name}: the tests cannot run ({said})", file=sys.stderr)
                return 2
            caught = code == pytest.ExitCode.TESTS_FAILED
            rows.append({"name": mutation.name, "module": mutation.module, "caught": caught, "by": said})
            took_s = time.monotonic() - began_s
            print(
                f"{'caught' if caught else 'NOT CAUGHT'}  {mutation.name} ({took_s:.0f} s)  {said}",
                flush=True,
            )
    missed = sum(not row["caught"] for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} caught")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
