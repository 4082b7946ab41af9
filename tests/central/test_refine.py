"""``epic central refine`` and ``check``: a map held against what came, and moved until the waves agree better."""

import hashlib
import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from small_waves import WAVES, earth, uncertainty
from tiny import bundle_centre, waves_bundle

import epic
from central.recordings.given import read_given
from central.recordings.store import COMING, KEPT, Progress, RecordingStore
from central.storage.database import connect
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from central.verification import refine as module
from central.verification.refine import refine_event
from central.verification.refine_inputs import RefinementRequest
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Rate, pack
from firmware_py.protocol.recording_codec import encode_part
from models.inversion.ood import measure_ood
from physics.modelling import model_gathers

pytestmark = pytest.mark.slow

TRUTH = earth(300.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return waves_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gather():
    return model_gathers(TRUTH[None, None], WAVES)[0]


@pytest.fixture
def config(tmp_path, bundle):
    return bundle_centre(tmp_path, bundle)


@pytest.fixture
def put(tmp_path, bundle, gather):
    """Stores an event as the centre does, ``put(event, bits, devices)``: latents of TRUTH, a map without its body."""

    def put(
        event=7,
        bits=8,
        devices=(0, 1),
        velocity_mps=None,
        model_hash=bundle.model_hash,
        unsure_mps=uncertainty(),
    ):
        journal, store, encoder = Journal(tmp_path / "data"), Store(tmp_path / "data"), Encoder(bundle)
        records = []
        for device in devices:
            part = gather[:, :, list(WAVES.device_receivers[device])]
            for boot, samples in ((1, np.zeros_like(part)), (2, part)):
                latent = encoder.encode_recording(samples)
                payload = pack(latent, Rate(len(latent), bits))
                record = packet.Record(
                    packet.LATENT, device, 1, boot, event, event, model_hash=model_hash, payload=payload
                )
                records.append((record, 5, len(payload)))
        last = journal.commit(records).new[-1].id if records else event
        provenance = {
            "devices": list(devices),
            "model_hash": model_hash.hex(),
            "sample_time_us": 1_700_000_000_000_000,
            "received_bytes": 100,
            "acquisition": WAVES.to_dict(),
        }
        start = earth(0.0) if velocity_mps is None else velocity_mps
        entry = NewMap((1, event, model_hash), last, len(devices) < 2, start, unsure_mps, provenance)
        store.put([entry])
        journal.close()
        store.close()

    return put


def refine(*arguments) -> int:
    return epic.main(["central", "refine", *map(str, arguments)])


def newest(tmp_path, event=7):
    store = Store(tmp_path / "data")
    try:
        return store.get(event)
    finally:
        store.close()


def put_again(tmp_path, later=0, event=7):
    """Store the event's map once more, as if decoded from ``later`` more records."""
    with closing(Store(tmp_path / "data")) as store:
        one = store.get(event)
        key = (one.survey, one.event, one.model_hash)
        last = store.decoded_through(one) + later
        store.put([NewMap(key, last, one.partial, one.velocity_mps, one.uncertainty_mps, one.provenance)])


def damage_map(tmp_path, **where):
    ((column, value),) = where.items()
    with closing(connect(tmp_path / "data")) as database:
        database.execute(f"UPDATE map SET checksum = checksum + 1 WHERE {column} = ?", (value,))


def complaint(capsys) -> str:
    """The last line on standard error, where progress is shown too."""
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()[-1]


def test_a_refined_map_is_the_events_newest_and_says_how_it_came_about(config, put, tmp_path, capsys):
    put()
    assert refine(7, "--config", config, "--iterations", 6, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["of_revision"], said["revision"]) == (1, 2)
    assert said["misfit"][1] < 0.99 * said["misfit"][0] and said["objective"][1] < said["objective"][0]
    stored = newest(tmp_path)
    assert stored.revision == 2 and not stored.partial
    account = stored.provenance["refinement"]
    assert account["by"] == "latents" and account["iterations_asked"] == 6
    assert account["misfit"] == said["misfit"] and account["settings"]["smooth_cells"] == [1.0, 6.0]
    assert stored.provenance["devices"] == [0, 1] and stored.uncertainty_mps.max() == 200.0
    assert np.abs(stored.velocity_mps - earth(0.0)).max() > 1.0
    assert (
        epic.main(["central", "export", "7", "--config", str(config), "--out", str(tmp_path / "m.nc")]) == 0
    )


def test_it_begins_at_the_decoders_map_again_however_often_it_is_asked(config, put, tmp_path, capsys):
    put()
    for _ in range(2):
        assert refine(7, "--config", config, "--iterations", 2) == 0
    assert "revision 3, refined from revision 1 in 2 iterations" in capsys.readouterr().out
    store = Store(tmp_path / "data")
    last, first = store.revisions(7)[:2]
    np.testing.assert_array_equal(last.velocity_mps, first.velocity_mps)
    store.close()


def test_a_damaged_older_revision_is_not_in_the_way(config, put, tmp_path):
    put()
    put_again(tmp_path)
    damage_map(tmp_path, revision=1)
    assert refine(7, "--config", config, "--iterations", 2) == 0
    assert newest(tmp_path).provenance["refinement"]["of_revision"] == 2


def test_a_refinement_does_not_begin_at_a_map_of_earlier_records_than_the_damaged_one(
    config, put, tmp_path, capsys
):
    """Its result would be older than the damaged map, and not stored."""
    put()
    put_again(tmp_path, later=1)
    damage_map(tmp_path, revision=2)
    assert refine(7, "--config", config) == 2
    assert "event 7, revision 2: damaged on the disk" in complaint(capsys)


def test_a_recording_of_the_event_takes_the_place_of_latents(config, put, gather, tmp_path, capsys):
    # More than four iterations leave unexplained.
    unsure_mps = 40 * uncertainty()
    put(devices=(1,), unsure_mps=unsure_mps)
    np.save(tmp_path / "gather.npy", gather)
    assert refine(7, "--config", config, "--iterations", 4, "--gather", tmp_path / "gather.npy") == 0
    assert "of the recording" in capsys.readouterr().out
    stored = newest(tmp_path)
    assert stored.partial and stored.provenance["refinement"]["by"] == "gather"
    assert np.array_equal(read_given(tmp_path / "data", 1, 7), gather)
    misfit = stored.provenance["refinement"]["misfit"]
    assert misfit[1] < misfit[0]
    assert (stored.uncertainty_mps <= unsure_mps * 1.001).all()
    assert (stored.uncertainty_mps < unsure_mps).any()


def test_a_fetched_recording_is_inverted_without_the_device_that_is_missing(
    config, put, gather, tmp_path, capsys
):
    put()
    assert refine(7, "--config", config, "--fetched") == 2
    assert "no recording is kept (nobody was asked)" in complaint(capsys)
    with closing(RecordingStore(tmp_path / "data")) as store:
        (asked,) = store.ask(7, None, [0])
        receivers = WAVES.device_receivers[0]
        data = encode_part(gather[:, :, list(receivers)], receivers)
        sha256 = hashlib.sha256(data).digest()
        coming = replace(asked, state=COMING, sha256=sha256, part_bytes=len(data))
        store.advance([Progress(coming, False, 0, data)], {}, 0)
        assert store.finish(coming).state == KEPT
    assert refine(7, "--config", config, "--fetched", "--iterations", 4) == 0
    account = newest(tmp_path).provenance["refinement"]
    assert (account["by"], account["gather"]) == ("gather", None)
    assert account["fetched"]["missing_devices"] == [1]
    assert account["fetched"]["parts"][0]["sha256"] == sha256.hex()
    assert account["misfit"][1] < account["misfit"][0]
    capsys.readouterr()
    assert refine(7, "--config", config, "--fetched", "--gather", "g.npy") == 2
    assert "--gather and --fetched exclude each other" in complaint(capsys)


def test_a_latent_of_fewer_bits_counts_less_and_who_was_not_heard_not_at_all(config, put, tmp_path):
    from central.config import load_config

    settings = load_config(config)
    put(1)
    put(2, bits=4)
    put(3, devices=(0,))
    of = {
        event: refine_event(
            settings.central.data_dir, settings.model, RefinementRequest(event, None, 1)
        ).refined.misfit[0]
        for event in (1, 2, 3)
    }
    assert of[2] < 0.7 * of[1]
    assert of[3] != pytest.approx(of[1], rel=1e-3)


def test_what_cannot_be_bettered_is_left_as_it_is(config, put, gather, tmp_path, capsys):
    put(velocity_mps=earth(0.0))
    np.save(tmp_path / "gather.npy", model_gathers(earth(0.0)[None, None], WAVES)[0])
    assert refine(7, "--config", config, "--iterations", 2, "--gather", tmp_path / "gather.npy") == 0
    assert "nothing stored; no step from revision 1 lowers the objective" in capsys.readouterr().out
    assert newest(tmp_path).revision == 1


def test_a_map_that_was_overtaken_meanwhile_is_not_stored(config, put, tmp_path, capsys, monkeypatch):
    """A late latent came while the waves were modelled, and the centre has drawn the event again."""
    put()
    real = module.refine

    def refine_slowly(*arguments):
        put_again(tmp_path, later=1)
        return real(*arguments)

    monkeypatch.setattr(module, "refine", refine_slowly)
    assert refine(7, "--config", config, "--iterations", 2) == 0
    assert (
        "nothing stored; a map of later latents than revision 1 was stored meanwhile"
        in capsys.readouterr().out
    )
    assert newest(tmp_path).revision == 2 and "refinement" not in newest(tmp_path).provenance
    assert refine(7, "--config", config, "--iterations", 2, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["revision"], said["overtaken"]) == (None, True)


def test_an_event_that_is_not_there_is_one_line(config, put, capsys):
    put(7)
    assert refine(8, "--config", config) == 2
    assert complaint(capsys) == "error: event 8: not in the store, which holds 1 events from 7 to 7"


def test_latents_of_a_model_that_is_not_configured_are_one_line(config, put, bundle, capsys):
    put(model_hash=bytes(8))
    assert refine(7, "--config", config) == 2
    assert (
        f"encoder {bytes(8).hex()}; expected one of [[model]], which has {bundle.model_hash.hex()}; add"
        in complaint(capsys)
    )


def test_a_missing_bundle_is_one_line(config, put, bundle, capsys):
    put()
    config.write_text(config.read_text().replace(str(bundle.folder), "nowhere"))
    assert refine(7, "--config", config) == 2
    assert "nowhere/manifest.json: not found" in complaint(capsys)


def test_latents_that_are_gone_are_one_line(config, put, capsys):
    put(devices=())
    assert refine(7, "--config", config) == 2
    assert "its latents are no longer in the journal; refine by the recording, --gather FILE" in complaint(
        capsys
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it cannot be read (No such file"),
        (b"no array", "it cannot be read (damaged, or of another format)"),
        (np.zeros((3, 100, 6), np.float32), "expected one gather (2, 100, 6)"),
        (np.full((2, 100, 6), np.inf, np.float32), "expected finite numbers; mend the recording"),
        (np.full((2, 100, 6), np.nan, np.float32), "expected at least one live trace, got NaN only"),
    ],
)
def test_a_recording_that_is_none_is_one_line(config, put, tmp_path, capsys, content, message):
    put()
    path = tmp_path / "gather.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    assert refine(7, "--config", config, "--gather", path) == 2
    assert message in complaint(capsys)


def test_no_iterations_are_wrong_use(config, put, capsys):
    assert refine(7, "--config", config, "--iterations", 0) == 2
    assert "Invalid value for '--iterations'" in capsys.readouterr().err


@pytest.fixture
def spread(tmp_path, bundle):
    """Beside the decoder, as `epic convert` leaves it: latents that spread by about ten steps."""
    latents = (
        np.random.default_rng(5).normal(0.0, 10.0, (200, 2, bundle.output.shape[1])) * bundle.output.scale
    )
    (tmp_path / "decoder").mkdir()
    measure_ood(latents, latents[:20]).save(tmp_path / "decoder" / "familiarity.npz")


def check(*arguments) -> int:
    return epic.main(["central", "check", *map(str, arguments)])


def test_a_check_tells_the_true_map_from_another_and_is_kept_with_it(config, put, spread, tmp_path, capsys):
    put(1, velocity_mps=TRUTH)
    put(2)
    put(3, velocity_mps=TRUTH - 600)
    put(4, bits=4, devices=(0,), velocity_mps=TRUTH)
    assert check("--config", config, "--json") == 0
    of = {row["event"]: row["latents"] for row in json.loads(capsys.readouterr().out)}
    # The tiny encoder is no trained one: as float it is some steps from int8, of which ten are a standard deviation.
    assert of[1] < of[2] < of[3] and of[1] < of[4]
    kept = newest(tmp_path, 2).provenance["consistency"]
    assert kept.pop("checked_us") > 1_700_000_000_000_000 and kept == {"latents": of[2]}
    assert newest(tmp_path, 2).revision == 1
    assert check("--config", config) == 0
    assert capsys.readouterr().out == "nothing to check: every event's newest map has been checked\n"


def test_of_many_maps_those_that_cannot_be_checked_hold_up_no_other(config, put, spread, tmp_path, capsys):
    put(1)
    put(2, devices=())
    put(3)
    for event in (4, 5):
        put(event, model_hash=bytes(8))
    assert check("--config", config, "--json") == 1
    rows = {row["event"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [5, 3, 2, 1], "the last drawn first; of a model that is not there once"
    assert [event for event, row in rows.items() if row["reason"] is None] == [3, 1]
    assert f"encoder {bytes(8).hex()}" in rows[5]["reason"] and rows[5]["latents"] is None
    for event in (1, 3):
        assert newest(tmp_path, event).provenance["consistency"]["latents"] == rows[event]["latents"]
    put(6)
    assert check("--config", config) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("event 6, revision 1: latents ")
    assert [line.split(":")[0] for line in shown.err.splitlines()] == [
        "event 5, revision 1",
        "event 2, revision 1",
    ]
    assert check(2, "--config", config) == 2


def test_a_damaged_map_is_listed_as_unchecked_and_holds_up_no_other(config, put, spread, tmp_path, capsys):
    for event in (1, 2, 3):
        put(event)
    damage_map(tmp_path, event=2)
    assert check("--config", config, "--json") == 1
    rows = {row["event"]: row for row in json.loads(capsys.readouterr().out)}
    assert [event for event, row in rows.items() if row["reason"] is None] == [3, 1]
    assert rows[2]["latents"] is None and "damaged on the disk" in rows[2]["reason"]
    assert (rows[2]["survey"], rows[2]["revision"]) == (1, 1)


def test_a_check_by_the_recording_is_its_misfit(config, put, gather, spread, tmp_path, capsys):
    put()
    np.save(tmp_path / "gather.npy", 2 * model_gathers(earth(0.0)[None, None], WAVES)[0])
    assert check(7, "--config", config, "--gather", tmp_path / "gather.npy") == 0
    assert "recording 50.0% off" in capsys.readouterr().out
    found = newest(tmp_path).provenance["consistency"]
    assert found["gather"] == pytest.approx(0.5, abs=1e-3)
    assert found["gather_by_receiver"] == pytest.approx([0.5] * WAVES.n_receivers, abs=1e-3)
    kept = np.load(tmp_path / "gather.npy")
    assert np.array_equal(read_given(tmp_path / "data", 1, 7), kept), "the page shows it"
    np.save(tmp_path / "gather.npy", 0 * gather)
    assert check(7, "--config", config, "--gather", tmp_path / "gather.npy") == 2
    assert "expected a recording, got silence" in complaint(capsys)
    kept[:, :, 2] = 0
    np.save(tmp_path / "gather.npy", kept)
    assert check(7, "--config", config, "--gather", tmp_path / "gather.npy") == 0
    assert newest(tmp_path).provenance["consistency"]["gather_by_receiver"][2] is None


def test_a_check_by_the_recording_leaves_dead_traces_out(config, put, spread, tmp_path, capsys):
    put()
    recorded = 2 * model_gathers(earth(0.0)[None, None], WAVES)[0]
    recorded[:, :, 2] = np.nan
    np.save(tmp_path / "gather.npy", recorded)
    assert check(7, "--config", config, "--gather", tmp_path / "gather.npy") == 0
    found = newest(tmp_path).provenance["consistency"]
    assert found["gather"] == pytest.approx(0.5, abs=1e-3) and found["gather_by_receiver"][2] is None
    assert np.array_equal(read_given(tmp_path / "data", 1, 7), recorded, equal_nan=True)
    capsys.readouterr()
    np.save(tmp_path / "gather.npy", 0 * recorded)
    assert check(7, "--config", config, "--gather", tmp_path / "gather.npy") == 2
    assert "expected a recording, got silence" in complaint(capsys)


def test_a_map_that_explains_nothing_of_the_recording_is_flagged(config, put, spread, tmp_path, capsys):
    put()
    modelled = model_gathers(earth(0.0)[None, None], WAVES)[0]
    np.save(tmp_path / "reversed.npy", -modelled)
    assert check(7, "--config", config, "--gather", tmp_path / "reversed.npy") == 0
    assert "event 7 is flagged: misfit: 2.00 to the recording (limit 0.5)" in capsys.readouterr().out
    (flag,) = newest(tmp_path).provenance["flags"]
    assert flag.startswith("misfit: 2.00 to the recording")
    assert check(7, "--config", config) == 0
    assert newest(tmp_path).provenance["flags"] == [flag], "a check by latents says nothing of it"
    np.save(tmp_path / "right.npy", modelled)
    assert check(7, "--config", config, "--gather", tmp_path / "right.npy") == 0
    assert "flags" not in newest(tmp_path).provenance


def test_a_refined_map_does_not_inherit_the_check_of_its_start(config, put, spread, tmp_path):
    put()
    np.save(tmp_path / "reversed.npy", -model_gathers(earth(0.0)[None, None], WAVES)[0])
    assert check(7, "--config", config, "--gather", tmp_path / "reversed.npy") == 0
    assert newest(tmp_path).provenance["flags"]
    assert refine(7, "--config", config, "--iterations", 2) == 0
    assert newest(tmp_path).revision == 2
    assert not {"consistency", "flags"} & set(newest(tmp_path).provenance)


def test_a_check_of_which_nothing_can_be_made_exits_with_2(config, put, spread, capsys):
    put(1, devices=())
    put(2, devices=())
    assert check("--config", config, "--json") == 2
    assert all(row["reason"] for row in json.loads(capsys.readouterr().out))
    put(3)
    assert check("--config", config) == 1


def test_a_check_that_cannot_be_is_one_line(config, put, capsys):
    put()
    assert check(7, "--config", config) == 2
    assert "familiarity.npz: cannot be read" in complaint(capsys)
    assert check("--config", config, "--gather", "gather.npy") == 2
    assert "give its number as well" in complaint(capsys)
