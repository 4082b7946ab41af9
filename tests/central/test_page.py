"""The page's addresses: what they answer, to whom, and what is said to those who ask wrongly."""

import sys
import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH, SURVEY, latent_record
from page_maps import put_map
from starlette.testclient import TestClient

from central.config import RetentionSection
from central.dashboard import totals
from central.dashboard.app import Site, build_app
from central.dashboard.archive import Archive
from central.dashboard.feed import Feed
from central.dashboard.totals import Totals
from central.export.line import Line
from central.fleet.history import HistoryKeeper
from central.recordings.given import given_path, keep_given
from central.recordings.picture import gather_figure
from central.storage.journal import Journal
from central.storage.map_store import Store
from central.storage.retention import Retention
from central.updates.rollout_store import RolloutStore
from firmware_py.runtime.log import Log, now_us

TOKEN = "a-token-of-enough-characters"
RAW_BYTES = SURVEY.n_sources * SURVEY.n_time * 4


@pytest.fixture
def put(data_dir):
    return partial(put_map, data_dir)


@pytest.fixture
def open_page(data_dir, tmp_path):
    """A client of the page over ``data_dir``: ``open_page(token)``."""

    def open_client(token=None, base_url="http://127.0.0.1:8080", line=None, running=True):
        log, totals = Log(tmp_path / "page.jsonl"), Totals()
        site = Site(data_dir, "tcp://0.0.0.0:5557", keyed=True, running=lambda: running, line=line)
        feed = Feed(data_dir, totals, log, site.running)
        return TestClient(build_app(site, token, feed, totals, log, live=None), base_url=base_url)

    return open_client


@pytest.fixture
def page(open_page):
    return open_page()


def error(answer, status):
    """The one line of an answer that refuses."""
    assert answer.status_code == status, answer.text
    (line,) = answer.json()["error"].splitlines()
    return line


def test_the_page_and_its_files_come_with_their_types_and_a_strict_policy(page):
    types = {
        "/": "text/html",
        "/static/page.css": "text/css",
        "/static/page.js": "text/javascript",
        "/static/icon.svg": "image/svg+xml",
    }
    for path, kind in types.items():
        answer = page.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert page.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_before_its_first_message_the_page_claims_nothing(page):
    """It said that no device was heard while it loaded."""
    text = page.get("/").text
    assert text.count("Loading …") == 2
    assert not any(claim in text for claim in ("No device has been seen", "first event", "appears here"))


def test_no_file_of_the_page_names_another_host():
    from central.dashboard.app import STATIC

    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, path


def test_colours_are_those_of_the_pictures():
    from cmcrameri import cm

    from central.dashboard.app import STATIC

    text = (STATIC / "colours.js").read_text()
    for name in ("batlow", "lajolla", "vik"):
        table = text.split(f"{name}:")[1].split('"')[1]
        wanted = [round(c * 255) for i in range(256) for c in getattr(cm, name)(i)[:3]]
        assert list(bytes.fromhex(table)) == wanted


def test_events_come_last_drawn_first_a_page_at_a_time(page, put):
    for event in (5, 3, 9, 4):
        put(event)
    put(3, velocity_mps=2500.0)
    first = page.get("/api/events", params={"size": 3}).json()
    assert [row["event"] for row in first["events"]] == [3, 4, 9]
    row = first["events"][0]
    assert (row["revision"], row["n_devices"], row["partial"]) == (2, 5, False)
    assert (row["received_bytes"], row["raw_bytes"]) == (1000, RAW_BYTES * SURVEY.n_receivers)
    assert "preview" not in row and "consistency" not in row
    rest = page.get("/api/events", params={"size": 3, "before": first["before"]}).json()
    assert [row["event"] for row in rest["events"]] == [5]
    assert rest["before"] is None


def test_partial_and_flagged_events_and_one_survey_alone(page, put):
    put(1)
    put(2, devices=(0, 1))
    put(3, replaced=1)
    put(4, flags=["the map does not explain the latents"], consistency={"latents": 0.31})
    put(5, devices=(0,))
    put(5)
    put(6, survey=2)

    def events(**query):
        return [row["event"] for row in page.get("/api/events", params=query).json()["events"]]

    assert events(only="partial") == [2]
    assert events(only="flagged") == [4, 3]
    assert events(survey=2) == [6]
    row = page.get("/api/events/1/4").json()["maps"][0]
    assert (row["flags"], row["consistency"]) == (["the map does not explain the latents"], {"latents": 0.31})
    totals = page.get("/api/totals").json()
    assert totals == {
        "events": 6,
        "surveys": [{"survey": 1, "events": 5}, {"survey": 2, "events": 1}],
        "partial": 1,
        "flagged": 2,
        "received_bytes": 5 * 1000 + 400,
        "raw_bytes": RAW_BYTES * (5 * SURVEY.n_receivers + 28),
        "counted": True,
    }


def test_a_map_that_a_check_flags_later_is_counted_once_and_until_it_is_replaced(
    page, put, data_dir, monkeypatch
):
    monkeypatch.setattr(totals, "FLAGGED_EVERY_S", 0.0)

    def flagged():
        return page.get("/api/totals").json()["flagged"]

    put(1)
    assert flagged() == 0
    with closing(Store(data_dir)) as store:
        store.amend(store.get(1), "consistency", {"gather": 1.2}, ("misfit", "1.20 to the recording"))
        assert flagged() == 1
        store.amend(store.get(1), "consistency", {"gather": 1.2}, ("misfit", "1.20 to the recording"))
    assert flagged() == 1
    assert page.get("/api/events/1/1").json()["maps"][0]["flags"] == ["misfit: 1.20 to the recording"]
    put(1)
    assert flagged() == 0


def test_a_map_that_is_not_its_events_newest_adds_nothing_to_the_sums(page, put):
    put(1)
    put(1, devices=(0, 1), last_record=1)
    totals = page.get("/api/totals").json()
    assert (totals["events"], totals["partial"], totals["received_bytes"]) == (1, 0, 1000)
    assert page.get("/api/events", params={"only": "partial"}).json()["events"] == []


def test_events_that_retention_deletes_are_counted_no_more(page, put, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(totals, "RECOUNT_S_PER_MAP", 0.0)
    for event in range(1, 6):
        put(event, devices=(0, 1), decoded_us=1)
    put(5, devices=(0, 1, 2), decoded_us=1)
    before = page.get("/api/totals").json()
    assert (before["events"], before["partial"], before["received_bytes"]) == (5, 5, 4 * 400 + 600)
    retention = Retention(data_dir, RetentionSection(max_events=2), Log(tmp_path / "log"))
    assert retention.prune(threading.Event())[0] == 3
    after = page.get("/api/totals").json()
    assert (after["events"], after["partial"], after["received_bytes"]) == (2, 2, 400 + 600)
    assert after["counted"]
    put(6)
    assert page.get("/api/totals").json()["events"] == 3


def test_a_preview_is_a_small_picture_of_the_section(page, put):
    put(1, velocity_mps=4500.0)
    (row,) = page.get("/api/events", params={"preview": 1}).json()["events"]
    rows, columns = row["preview"]["shape"]
    values = bytes.fromhex(row["preview"]["hex"])
    assert rows == columns == len(values) ** 0.5
    assert set(values) == {255}


def test_an_event_has_all_its_maps_of_every_model(page, put):
    put(7, devices=(0, 1, 2))
    put(7, devices=(3,), model=OTHER_HASH)
    put(7)
    put(9)
    content = page.get("/api/events/1/7").json()
    assert [(m["model_hash"], m["revision"]) for m in content["maps"]] == [
        (MODEL_HASH.hex(), 2),
        (OTHER_HASH.hex(), 1),
        (MODEL_HASH.hex(), 1),
    ]
    assert (content["previous"], content["next"]) == (None, 9)
    assert content["maps"][0]["provenance"]["acquisition"] == SURVEY.to_dict()


def test_a_map_comes_as_numbers_and_as_float32(page, put):
    put(7, devices=(0, 1))
    put(7, velocity_mps=3000.0)
    content = page.get("/api/map/1/7").json()
    assert content["velocity_mps"][0][:3] == [3000.0, 1600.0, 3000.0]
    assert content["uncertainty_mps"][69][69] == 80.0
    assert content["dx_m"] == SURVEY.dx_m
    answer = page.get("/api/map/1/7", params={"format": "float32", "id": 1})
    assert answer.headers["x-epic-shape"] == "2,70,70"
    assert (answer.headers["x-epic-id"], answer.headers["x-epic-partial"]) == ("1", "true")
    velocity, uncertainty = np.frombuffer(answer.content, "<f4").reshape(2, 70, 70)
    assert (velocity[0, 0], velocity[0, 1], uncertainty[3, 3]) == (2000.0, 1600.0, 80.0)


def test_a_browser_keeps_a_maps_values_and_asks_again_for_what_is_said_of_it(page, put, data_dir):
    put(7)
    values = page.get("/api/map/1/7", params={"format": "float32", "id": 1})
    assert values.headers["cache-control"] == "private, max-age=86400"
    assert "max-age" not in page.get("/api/map/1/7", params={"id": 1}).headers.get("cache-control", "")
    with closing(Store(data_dir)) as store:
        store.amend(store.get(7), "consistency", {"latents": 0.3})
    assert page.get("/api/map/1/7", params={"id": 1}).json()["consistency"] == {"latents": 0.3}


def test_an_event_has_an_address_of_its_own(page, put):
    put(7)
    assert page.get("/events/1/7").text == page.get("/").text
    assert "no such address" in error(page.get("/events/1/seven"), 404)


def test_an_event_is_downloaded_in_every_format_that_is_a_file(open_page, put):
    import io

    import xarray

    put(7, velocity_mps=3000.0)
    put(7, velocity_mps=2500.0)
    page = open_page(line=Line((500_000.0, 4_512_345.0), 90.0))
    assert page.get("/api/centre").json()["downloads"] == {
        "npy": ".npy",
        "netcdf": ".nc",
        "segy": ".sgy",
        "png": ".png",
    }
    answer = page.get("/api/export/1/7", params={"format": "npy", "id": 1})
    name = "survey1-event000007-revision1.npy"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert np.load(io.BytesIO(answer.content))[0, 0, 0] == 3000.0
    newest = page.get("/api/export/1/7", params={"format": "netcdf"})
    with xarray.open_dataset(io.BytesIO(newest.content), engine="h5netcdf") as dataset:
        assert dataset.velocity.values[0, 0] == 2500.0
        assert float(dataset.x[0]) == 500_000.0
    assert page.get("/api/export/1/7", params={"format": "png"}).content.startswith(b"\x89PNG")
    assert len(page.get("/api/export/1/7", params={"format": "segy"}).content) > 3600


def test_a_format_whose_library_is_missing_is_said_and_not_offered(page, put, monkeypatch):
    monkeypatch.setitem(sys.modules, "segyio", None)
    put(7)
    assert list(page.get("/api/centre").json()["downloads"]) == ["npy", "netcdf", "png"]
    line = error(page.get("/api/export/1/7", params={"format": "segy"}), 503)
    assert line == "export: segy needs segyio; install it with: pip install -e '.[geo]' in the clone"


def test_the_recording_is_drawn_beside_the_modelled_gather(page, put, data_dir, monkeypatch):
    modelled = []

    def model(velocity_mps, acquisition, engine):
        modelled.append((float(velocity_mps[0, 0, 0, 0]), engine))
        return np.zeros((1, *acquisition.gather_shape), np.float32)

    monkeypatch.setattr("physics.modelling.model_gathers", model)
    put(7)
    gather = np.ones(SURVEY.gather_shape, np.float32)
    gather[:, :, list(SURVEY.device_receivers[2])] = np.nan
    keep_given(data_dir, 1, 7, gather)
    answer = page.get("/api/gather/1/7")
    assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
    (event_map,) = page.get("/api/events/1/7").json()["maps"]
    assert page.get("/api/gather/1/7", params={"id": event_map["id"]}).content == answer.content
    assert len(modelled) == 2 and modelled[0][1] == "openfwi"
    figure = gather_figure(Store(data_dir).get(7), gather)
    assert "devices 2 missing" in figure.get_suptitle()
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["recorded", "modelled, revision 1", "residual, 100 % of the recording"]


def test_a_recording_is_there_once_it_was_kept_one_shot_at_a_time(page, put, data_dir):
    put(7)
    assert page.get("/api/events/1/7").json()["recording"] is False
    gather = np.zeros(SURVEY.gather_shape, np.float32)
    gather[1] = np.arange(SURVEY.n_time, dtype=np.float32)[:, None]
    gather[1, :, 3] = np.nan
    keep_given(data_dir, 1, 7, gather)
    assert page.get("/api/events/1/7").json()["recording"] is True
    answer = page.get("/api/recording/1/7", params={"shot": 2})
    assert answer.headers["x-epic-shape"] == f"500,{SURVEY.n_receivers}"
    shot = np.frombuffer(answer.content, "<f4").reshape(500, SURVEY.n_receivers)
    assert (shot[0, 0], shot[499, 69]) == (0.5, 998.5), "two samples are averaged"
    assert np.isnan(shot[:, 3]).all()
    last = SURVEY.n_sources
    assert f"from 1 to {last}" in error(page.get("/api/recording/1/7", params={"shot": last + 1}), 400)
    given_path(data_dir, 1, 7).write_bytes(b"no array")
    assert "damaged" in error(page.get("/api/gather/1/7"), 503)
    assert "damaged" in error(page.get("/api/recording/1/7"), 503)


def test_the_history_of_a_device_comes_by_span(open_page, data_dir, tmp_path):
    keeper = HistoryKeeper(data_dir, Log(tmp_path / "log"))
    at_us = now_us()
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=2, sample_time_us=at_us - 250_000), at_us, 100)])
    # Not later: the next second may belong to a step that has not begun.
    keeper.sample(at_us)
    for span, step_s in (("hour", 10), ("days", 600), ("months", 10_800)):
        content = open_page().get("/api/history/1/2", params={"span": span}).json()
        assert content["step_s"] == step_s
        ((at_s, lag_ms, lost, queue),) = content["samples"]
        assert at_s % step_s == 0 and content["from_s"] <= at_s <= content["until_s"]
        assert (lag_ms, lost, queue) == (250, 0, None)
    assert open_page().get("/api/history/1/3").json()["samples"] == []
    assert open_page().get("/api/history/99999/3").json()["samples"] == []
    stored = open_page(running=False).get("/api/history/1/2").json()
    assert stored["until_s"] == stored["samples"][0][0] + 10, "a stored history ends with its last sample"


def test_devices_and_rollout(page, open_page, data_dir):
    assert page.get("/api/devices").json() == []
    assert page.get("/api/rollout").json() == []
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=2, sequence=1), 1_700_000_000_500_000, 100)])
    (device,) = page.get("/api/devices").json()
    assert (device["survey"], device["device"], device["records"]) == (1, 2, 1)
    assert device["state"] == "silent"
    (stored,) = open_page(running=False).get("/api/devices").json()
    assert stored["state"] == "on time", "as on the page over stored maps: at the last sign of a device"


def test_metrics_are_the_centres_for_whoever_may_see_the_page(page, open_page, put):
    put(1)
    answer = page.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "epic_store_up 1.0" in answer.text.splitlines()
    assert open_page(TOKEN).get("/metrics").status_code == 401


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("/api/events/1/8", 404, "survey 1, event 8: not in the store, which holds events from 7 to 7 of it"),
        ("/api/events/3/7", 404, "which holds nothing of that survey"),
        ("/api/events/99999999999999999999/7", 404, "a survey is at most 65535"),
        ("/api/map/1/99999999999", 404, "an event at most 4294967295"),
        ("/api/map/1/7?id=12", 404, "has no map 12; its maps are [1]"),
        ("/api/map/1/7?id=none", 400, "id: expected a whole number from 1"),
        ("/api/map/1/7?format=segy", 400, "format: expected one of json, float32, got 'segy'"),
        ("/api/events?before=99999999999999999999999", 400, "before: expected a whole number"),
        ("/api/events?before=-1", 400, "before: expected a whole number"),
        ("/api/events?size=100000", 400, "size: expected a whole number from 1 to 200, got '100000'"),
        ("/api/events?only=good", 400, "only: expected one of all, partial, flagged, got 'good'"),
        ("/api/events?survey=70000", 400, "survey: expected a whole number from 0 to 65535"),
        ("/api/export/1/7?format=zarr", 400, "format: expected one of npy, netcdf, segy, png, got 'zarr'"),
        ("/api/export/1/7", 400, "got ''"),
        ("/api/export/1/8?format=npy", 404, "not in the store"),
        ("/api/recording/1/7", 404, "survey 1, event 7: no recording in the store"),
        ("/api/gather/1/7", 404, "survey 1, event 7: no recording in the store"),
        ("/api/recording/99999/7", 404, "no recording in the store"),
        ("/api/history/1/0?span=year", 400, "span: expected one of hour, days, months, got 'year'"),
        ("/api/events/1/seven", 404, "no such address"),
        ("/static/../app.py", 404, "no such address"),
    ],
)
def test_what_is_not_there_or_not_sense_is_one_line(page, put, path, status, line):
    put(7)
    assert line in error(page.get(path), status)


def test_values_that_are_not_finite_are_null(page, put):
    put(7, velocity_mps=np.nan, consistency=float("nan"), replaced=1)
    (row,) = page.get("/api/events", params={"preview": 1}).json()["events"]
    assert (row["velocity_mean_mps"], row["consistency"]) == (None, None)
    assert page.get("/api/map/1/7").json()["velocity_mps"][0][:2] == [None, 1600.0]
    assert page.get("/api/totals").json()["events"] == 1


def test_nothing_can_be_changed(page):
    assert "only GET" in error(page.post("/api/events"), 405)


def test_a_store_that_is_gone_is_503_and_what_fails_500(page, data_dir, monkeypatch, tmp_path):
    def fail(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Archive, "devices", fail)
    assert "the page failed" in error(page.get("/api/devices"), 500)
    assert "planted" in (tmp_path / "page.jsonl").read_text()
    (data_dir / "central.sqlite").unlink()
    assert "not found" in error(page.get("/api/events"), 503)


def test_without_a_token_only_names_of_this_machine_are_answered(open_page):
    for host in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080", "localhost"):
        assert open_page(base_url=f"http://{host}").get("/").status_code == 200
    assert "answers to localhost" in error(open_page(base_url="http://evil.example:8080").get("/"), 421)


def test_a_token_is_asked_for_and_taken_in_three_ways(open_page):
    page = open_page(TOKEN, "http://centre.example:8080")
    assert "needs its token" in error(page.get("/api/events"), 401)
    assert "needs its token" in error(page.get("/api/stream"), 401)
    assert "not the token" in error(page.get("/api/events", params={"token": "x" * 20}), 401)
    wrong = {"authorization": f"Bearer {TOKEN}x"}
    assert "not the token" in error(page.get("/api/events", headers=wrong), 401)
    assert page.get("/api/events", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert page.get("/api/events", params={"token": TOKEN}).status_code == 200
    browser = {"accept": "text/html"}
    asked = page.get("/", headers=browser)
    assert asked.status_code == 401 and "<form" in asked.text
    assert "not the token" not in asked.text
    refused = page.get("/", params={"token": "x" * 20}, headers=browser)
    assert refused.status_code == 401 and "This is not the token of this page" in refused.text
    assert 'aria-invalid="true"' in refused.text and "x" * 20 not in refused.text
    event = page.get("/events/1/7", headers=browser)
    assert event.status_code == 401 and 'action="/events/1/7"' in event.text
    there = page.get("/events/1/7", params={"token": TOKEN}, headers=browser, follow_redirects=False)
    assert (there.status_code, there.headers["location"]) == (303, "/events/1/7")
    page.cookies.clear()
    entered = page.get("/", params={"token": TOKEN}, headers=browser, follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert page.get("/", headers=browser).status_code == 200
    name = cookie.partition("=")[0]
    page.cookies.clear()
    page.cookies.set(name, "0" * 64)
    assert page.get("/", headers=browser).status_code == 401


def test_the_address_of_a_revision_is_kept_while_the_token_is_given(open_page):
    page = open_page(TOKEN, "http://centre.example:8080")
    browser = {"accept": "text/html"}
    asked = page.get("/events/1/7", params={"map": '7"><b>'}, headers=browser)
    assert '<input type="hidden" name="map" value="7&quot;&gt;&lt;b&gt;">' in asked.text
    query = {"map": "77", "token": TOKEN}
    there = page.get("/events/1/7", params=query, headers=browser, follow_redirects=False)
    assert there.headers["location"] == "/events/1/7?map=77"


def enter(page):
    """Give the token as a browser does; return the cookie."""
    there = page.get("/", params={"token": TOKEN}, headers={"accept": "text/html"}, follow_redirects=False)
    page.cookies.clear()
    return there.headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize(
    "other", ["theme=dark", 'prefs={"a":1}', "name=Jane Doe", "filter[x]=1", "flag", "n=caf\u00e9", "a=b=c"]
)
def test_a_cookie_of_another_service_on_the_host_locks_nobody_out(open_page, other):
    page = open_page(TOKEN, "http://centre.example:8080")
    own = enter(page)
    for cookies in (f"{other}; {own}", f"{own};{other}"):
        assert page.get("/api/events", headers={"cookie": cookies.encode()}).status_code == 200


def test_the_pages_of_two_centres_on_one_host_keep_a_cookie_each(open_page):
    page, other = open_page(TOKEN), open_page(f"{TOKEN}-of-another")
    own = enter(page)
    there = other.get(
        "/", params={"token": f"{TOKEN}-of-another"}, follow_redirects=False, headers={"accept": "text/html"}
    )
    assert there.headers["set-cookie"].partition("=")[0] != own.partition("=")[0]


def test_the_rollout_is_told_with_its_devices(page, data_dir):
    from central.updates.rollout_store import DeviceState

    with closing(RolloutStore(data_dir)) as store:
        store._database.execute(
            "INSERT INTO rollout VALUES (4, 'mixed', ?, 1, 1, 'canary', '')", (MODEL_HASH,)
        )
        store.keep_states(4, {(1, 2): DeviceState("downloading", "", 512, 9)})
    (rollout,) = page.get("/api/rollout").json()
    assert (rollout["version"], rollout["stage"], rollout["model_hash"]) == (4, "canary", MODEL_HASH.hex())
    assert rollout["devices"] == [
        {"survey": 1, "device": 2, "state": "downloading", "reason": "", "bytes": 512, "changed_us": 9}
    ]


def test_a_number_of_thousands_of_digits_is_no_address(page):
    """Python does not read more than 4,300: it was an error of the page."""
    for path in (f"/api/events/1/{'9' * 5000}", f"/api/map/{'1' * 5000}/7"):
        assert "no such address" in error(page.get(path), 404)
    assert "not in the store" in error(page.get("/api/events/1/9999999999"), 404)
