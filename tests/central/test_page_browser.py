"""The page in headless Chromium, served by a centre at work."""

import json
import threading

import numpy as np
import pytest
from browser import Browser, find_chromium
from fake_decoder import MODEL_HASH, SURVEY, FakeDecoder, latent_record
from page_maps import put_map
from waiting import wait_until

from central.config import CentralConfig, CentralSection
from central.dashboard.server import PageServer
from central.fleet.rates import keep_rate
from central.recordings.given import keep_given
from central.service import Service
from central.storage.map_store import NewMap, Store
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, encode_health
from firmware_py.runtime.log import Log, now_us

pytestmark = [
    pytest.mark.skipif(not find_chromium(), reason="chromium is not installed (.ci/packages)"),
    pytest.mark.slow,
]


class Centre:
    """A centre with a page on a port of its own."""

    def __init__(self, folder, address="127.0.0.1:0", **more):
        self._log_path = folder / "central.jsonl"
        central = {
            "listen": "tcp://127.0.0.1:*",
            "data_dir": folder / "data",
            "deadline_s": 0.3,
            "pictures": False,
            "page_listen": address,
            **more,
        }
        config = CentralConfig.model_validate(
            {"central": central, "model": [{"bundle": folder, "decoder": folder}]}
        )
        self.service = Service(config, {MODEL_HASH: FakeDecoder()}, Log(self._log_path))
        self._thread = threading.Thread(target=self.service.run)
        self._thread.start()
        self.page = wait_until(self._page, timeout_s=30, what="page")

    def _page(self):
        lines = [json.loads(line) for line in self._log_path.read_text().splitlines()]
        return next((line["address"] for line in reversed(lines) if line["message"] == "page"), None)

    def stop(self):
        self.service.stop()
        self._thread.join()


@pytest.fixture
def centre(tmp_path):
    running = Centre(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def browse(tmp_path):
    """Opens an address in a browser of its own."""
    opened = []

    def open_browser(url, **look):
        opened.append(Browser(tmp_path / f"profile{len(opened)}", **look))
        opened[-1].open(url)
        return opened[-1]

    yield open_browser
    for browser in opened:
        browser.close()


@pytest.fixture
def send(centre, dealers):
    """Latents of an event from these devices, each acknowledged."""
    sockets = {}

    def send_all(event, *devices):
        for device in devices:
            if device not in sockets:
                sockets[device] = dealers(centre.service.receiver.endpoint)
            sockets[device].send(latent_record(device, event, sequence=event, value=device + 1))
            assert sockets[device].answer()

    return send_all


def click(browser, selector):
    assert browser.value(f"Boolean(document.querySelector({json.dumps(selector)}))"), selector
    browser.value(f"document.querySelector({json.dumps(selector)}).click()")


def refine_event(data_dir, event, **found):
    """What `epic central refine` leaves in the store, and `check` at once."""
    store = Store(data_dir)
    start = store.get(event)
    key = (start.survey, start.event, start.model_hash)
    refinement = {
        **{"by": "latents", "of_revision": start.revision, "iterations": 20},
        **{"misfit": [4.0, 1.25], "misfit_unit": "int8 steps"},
    }
    provenance = {**start.provenance, "refinement": refinement, **found}
    maps = (start.velocity_mps + 10, start.uncertainty_mps / 2)
    store.put([NewMap(key, store.emitted_through(key), start.partial, *maps, provenance)])
    store.close()


def check_event(data_dir, event, latents):
    """What a check leaves in the store."""
    store = Store(data_dir)
    store.amend(store.get(event), "consistency", {"latents": latents, "checked_us": int(100 * latents)})
    store.close()


def shown(browser, event):
    return browser.value("document.querySelector('#velocity').dataset.event") == str(event)


def test_the_page_shows_the_map_and_the_devices_and_follows_live(centre, browse, send, tmp_path):
    send(1, 0, 1, 2, 3, 4)
    browser = browse(centre.page)
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="first map")
    wait_until(lambda: browser.text("#link") == "live", timeout_s=30, what="word of the centre")
    assert browser.text("#s-title") == "Event 1"
    assert "complete" in browser.text("#s-badges")
    wait_until(lambda: browser.text("#t-events") == "1", what="totals")
    rows = "document.querySelectorAll('#devices tbody tr').length"
    wait_until(lambda: browser.value(rows) == 5, what="devices")
    assert "of 5" in browser.text("#t-devices")
    keep_rate(tmp_path / "data", (1, 2), 8)
    wait_until(lambda: "– → 8 B" in browser.text("#devices"), what="the rate that a device is set to")
    label = "document.querySelector('#velocity').getAttribute('aria-label')"
    assert browser.value(label) == "Velocity section of event 1, 700 m long, 700 m deep"

    assert "Waves through the map" not in browser.text("#s-facts")
    check_event(tmp_path / "data", 1, 0.47)
    wait_until(lambda: "latents 0.47 σ off" in browser.text("#s-facts"), timeout_s=60, what="its check")

    send(2, 0, 1, 3, 4)
    wait_until(lambda: shown(browser, 2), timeout_s=60, what="next map, by itself")
    assert "Waves through the map" not in browser.text("#s-facts")
    assert "partial" in browser.text("#s-badges")
    assert "1 device missing" in browser.value(label)

    refine_event(tmp_path / "data", 2, consistency={"latents": 0.314, "gather": 0.2})
    wait_until(
        lambda: "revision 2" in browser.text("#s-badges"), timeout_s=60, what="a refined map, by itself"
    )
    assert "its latents, of revision 1: misfit 4.00 to 1.25" in browser.text("#s-facts")
    assert "latents 0.31 σ off (0 agrees, 1.4 is unrelated); recording 20 % off" in browser.text("#s-facts")
    assert browser.errors == []


def test_arrow_keys_read_the_map_and_a_past_event_stays_until_live_is_pressed(centre, browse, send, tmp_path):
    send(1, 0, 1, 2, 3, 4)
    browser = browse(centre.page, width=412)
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="first map")
    browser.value("document.querySelector('#velocity').focus()")
    left = "new KeyboardEvent('keydown', {key: 'ArrowLeft', shiftKey: true})"
    for _ in range(4):
        browser.value(f"document.querySelector('#velocity').dispatchEvent({left})")
    browser.press("ArrowRight")
    # The fake decoder's column d is 2000 + the first value of device d's latent.
    assert browser.text("#readout") == "10 m along, 355 m deep: 2,002 ± 1 m/s"
    assert browser.value("document.documentElement.scrollWidth") <= 412

    wait_until(lambda: browser.text("#events"), what="list")
    browser.value("document.querySelector('#events a').click()")
    wait_until(lambda: browser.value("document.querySelector('#live').ariaPressed") == "false", what="past")
    send(2, 0, 1, 2, 3, 4)
    wait_until(lambda: "Event 2" in browser.text("#events"), timeout_s=60, what="the new one in the list")
    check_event(tmp_path / "data", 2, 0.2)
    check_event(tmp_path / "data", 1, 0.3)
    # A phone shows what is known of a map when it is asked for.
    click(browser, "#s-more summary")
    wait_until(lambda: "latents 0.30 σ off" in browser.text("#s-facts"), timeout_s=60, what="its check")
    assert shown(browser, 1)
    browser.value("document.querySelector('#live').click()")
    wait_until(lambda: shown(browser, 2), timeout_s=60, what="the newest again")
    assert browser.errors == []


def test_a_lost_centre_is_said_plainly_and_found_again(tmp_path, browse):
    centre = Centre(tmp_path)
    address = centre.page.removeprefix("http://").strip("/")
    browser = browse(centre.page)
    try:
        wait_until(lambda: browser.text("#link") == "live", timeout_s=60, what="word of the centre")
    finally:
        centre.stop()
    wait_until(lambda: "does not answer" in browser.text("#lost"), timeout_s=60, what="alarm")
    assert browser.text("#link") == "no connection"
    again = Centre(tmp_path, address)
    try:
        wait_until(lambda: browser.text("#link") == "live", timeout_s=60, what="centre again")
        assert browser.text("#lost") == ""
    finally:
        again.stop()


def test_stored_maps_without_a_centre_are_not_called_live(data_dir, fill, tmp_path, browse):
    fill(event=7)
    stop, announced = threading.Event(), []
    section = CentralSection(listen="tcp://127.0.0.1:*", data_dir=data_dir, insecure=True)
    server = PageServer(section, "127.0.0.1:0", Log(tmp_path / "page.jsonl"), None, announced.append)
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        (line,) = wait_until(lambda: announced, timeout_s=30, what="the page's address")
        browser = browse(line.split()[-1])
        wait_until(lambda: shown(browser, 7), timeout_s=60, what="the stored map")
        assert browser.text("#link") == "stored maps; no centre runs here"
        assert "up" not in browser.value("document.querySelector('#link').className").split()
        assert browser.text("#live") == "Newest"
        assert browser.text("#t-devices-what") == "devices on time when last seen"
    finally:
        stop.set()
        thread.join()


def test_an_event_has_an_address_that_is_opened_shared_and_gone_back_to(centre, browse, send):
    send(1, 0, 1, 2, 3, 4)
    send(2, 0, 1, 2, 3, 4)
    browser = browse(f"{centre.page}events/1/1")
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="the event of the address")
    wait_until(lambda: browser.text("#link") == "live", timeout_s=30, what="word of the centre")
    assert browser.value("document.title") == "Event 1 · EPIC"
    wait_until(lambda: browser.text("#downloads"), what="downloads")
    links = "[...document.querySelectorAll('#downloads a')].map((a) => new URL(a.href).search)"
    assert [link.split("&")[0] for link in browser.value(links)] == [
        f"?format={name}" for name in ("npy", "netcdf", "segy", "png")
    ]
    click(browser, "#next")
    wait_until(lambda: shown(browser, 2), timeout_s=60, what="the next event")
    assert browser.value("location.pathname") == "/events/1/2"
    browser.value("history.back()")
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="back to the event before")
    click(browser, "#live")
    wait_until(lambda: browser.value("location.pathname") == "/", what="the address of the newest")
    browser.open(f"{centre.page}events/1/9")
    wait_until(lambda: "which holds events from 1 to 2" in browser.text("#s-wait"), timeout_s=60, what="why")
    assert browser.text("#s-title") == "Event 9"
    assert browser.value("document.getElementById('s-body').offsetHeight") == 0
    assert not [error for error in browser.errors if "404" not in error]


def test_flags_are_said_in_full_and_the_tiles_lead_to_what_they_count(centre, browse, tmp_path):
    flags = [
        "uncertain: the mean uncertainty is 326 m/s (limit 300 m/s)",
        "unlike training: score 4 (limit 3)",
    ]
    put_map(tmp_path / "data", 1, flags=flags)
    put_map(tmp_path / "data", 2, devices=(0, 1))
    browser = browse(f"{centre.page}events/1/1")
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="the event")
    assert browser.text("#s-flags").split("\n\n") == [f"Flagged, {flag}" for flag in flags]
    wait_until(lambda: browser.text("#t-flagged") == "1", timeout_s=60, what="totals")
    listed = "[...document.querySelectorAll('#events a')].map((a) => a.dataset.key).join()"
    for tile, events in (("flagged", "1-1"), ("partial", "1-2"), ("all", "1-2,1-1")):
        click(browser, f"[data-go={tile}]")
        wait_until(lambda events=events: browser.value(listed) == events, timeout_s=30, what=tile)
        assert browser.value("document.activeElement.id") == "events-card"
    assert "flagged: uncertain, unlike training" in browser.text("#events")
    click(browser, "[data-go=devices]")
    assert browser.value("document.activeElement.id") == "devices-card"


def test_one_cell_does_not_make_the_rest_of_the_uncertainty_black(centre, browse, tmp_path):
    store = Store(tmp_path / "data", create=True)
    uncertainty = np.full(SURVEY.map_shape[1:], 80.0, np.float32)
    uncertainty[30, 30] = 4630.0
    put_map(tmp_path / "data", 1)
    first = store.get(1)
    key = (1, 1, first.model_hash)
    store.put([NewMap(key, 99, False, first.velocity_mps, uncertainty, first.provenance)])
    store.close()
    browser = browse(f"{centre.page}events/1/1")
    label = "document.querySelector('#uncertainty').getAttribute('aria-label')"
    wait_until(
        lambda: "colours end at 80 m/s" in (browser.value(label) or ""), timeout_s=60, what="clipped colours"
    )
    assert browser.errors == []


def test_a_recording_and_its_misfit_stand_beside_the_map(centre, browse, send, tmp_path):
    send(1, 0, 1, 2, 3, 4)
    browser = browse(f"{centre.page}events/1/1")
    wait_until(lambda: shown(browser, 1), timeout_s=60, what="the event")
    assert browser.value("document.querySelector('#recording-figure').hidden")
    gather = np.random.default_rng(3).normal(size=SURVEY.gather_shape).astype(np.float32)
    keep_given(tmp_path / "data", 1, 1, gather)
    store = Store(tmp_path / "data")
    found = {"latents": 0.5, "gather": 0.25, "gather_by_receiver": [0.25] * 69 + [None], "checked_us": 7}
    store.amend(store.get(1), "consistency", found)
    store.close()
    wait_until(lambda: browser.text("#misfit") == "misfit 0.25", timeout_s=60, what="misfit")
    label = "document.querySelector('#recording').getAttribute('aria-label')"
    wait_until(lambda: browser.value(label) == "Recording of event 1, shot 3 of 5", what="the middle shot")
    browser.value(
        "const s = document.querySelector('#shot'); s.value = 5; s.dispatchEvent(new Event('change'))"
    )
    wait_until(lambda: browser.value(label) == "Recording of event 1, shot 5 of 5", timeout_s=30, what="shot")
    assert browser.errors == []


def test_the_revisions_of_an_event_stand_side_by_side_in_the_same_colours(centre, browse, tmp_path):
    put_map(tmp_path / "data", 1)
    put_map(tmp_path / "data", 2)
    refine_event(tmp_path / "data", 1)
    browser = browse(f"{centre.page}events/1/1")
    listed = "[...document.querySelectorAll('#revisions li')].map((one) => one.innerText.trim().split(/\\s*\\n\\s*/))"
    wait_until(lambda: len(browser.value(listed)) == 2, timeout_s=60, what="both revisions")
    assert browser.value(listed) == [
        ["Revision 1", "Predicted by the decoder", "5 of 5 devices", "±80 m/s on average"],
        [
            "Revision 2",
            "Refined by its latents, 20 iterations",
            "Misfit 4.000 to 1.250 int8 steps",
            "±40 m/s on average",
        ],
    ]
    scale = "document.querySelector('#revisions [data-scale=velocity]').innerText.replaceAll('\\n', '')"
    assert browser.value(scale) == "1,5004,500 m/s"
    click(browser, "#fit")
    # The lowest of the decoder's map and the highest of the refined one.
    assert browser.value(scale) == "1,6002,010 m/s"
    colour = (
        "((of, map) => document.querySelectorAll(`#revisions [data-of=${of}]`)[map].getContext('2d')"
        ".getImageData(5, 5, 1, 1).data.join())"
    )
    # 2,000 and 2,010 m/s; 80 and 40 m/s.
    for of in ("velocity", "uncertainty"):
        assert browser.value(f"{colour}('{of}', 0)") != browser.value(f"{colour}('{of}', 1)")
    click(browser, "#revisions li a")
    wait_until(
        lambda: "?map=" in browser.value("location.href"), timeout_s=60, what="the address of revision 1"
    )
    wait_until(
        lambda: browser.text("#revisions [aria-current]") == "Revision 1", timeout_s=60, what="revision 1"
    )
    browser.open(f"{centre.page}events/1/2")
    wait_until(lambda: shown(browser, 2), timeout_s=60, what="an event of one map")
    assert browser.value("document.querySelector('#revisions').hidden")
    assert browser.errors == []


def test_devices_are_sorted_and_one_shows_its_history(centre, browse, send):
    send(1, 0, 1, 2, 3, 4)
    browser = browse(centre.page)
    order = "[...document.querySelectorAll('#devices .row')].map((r) => r.dataset.key).join()"
    wait_until(lambda: browser.value(order) == "1-0,1-1,1-2,1-3,1-4", timeout_s=60, what="devices")
    click(browser, "th[data-column=device] button")
    assert browser.value(order) == "1-4,1-3,1-2,1-1,1-0"
    assert browser.value("document.querySelector('th[data-column=device]').ariaSort") == "descending"
    click(browser, "th[data-column=received] button")
    assert browser.value("document.querySelector('th[data-column=received]').ariaSort") == "descending"
    click(browser, "[data-key='1-2'] button")
    wait_until(
        lambda: "No records in this period" in browser.text(".detail"), timeout_s=30, what="an empty history"
    )
    centre.service._history.sample(now_us())
    click(browser, ".detail [role=group] button:last-child")
    label = "document.querySelector('.detail canvas').getAttribute('aria-label')"
    wait_until(lambda: " at most" in (browser.value(label) or ""), timeout_s=30, what="its latency")
    assert "Model" in browser.text(".detail")
    click(browser, "[data-key='1-2'] button")
    assert browser.text(".detail") == ""
    assert browser.errors == []


def test_a_device_that_rejects_its_recordings_is_not_merely_on_time(centre, browse, dealers):
    """Its link is well, and nothing of what it records arrives."""
    health = Health(60, 1, 0, 0, 0, 1, rejected=3, rejection="expected a gather (5, 1000, 70)")
    record = packet.Record(packet.HEALTH, 2, 1, 1, 1, model_hash=MODEL_HASH, payload=encode_health(health))
    sender = dealers(centre.service.receiver.endpoint)
    sender.send(record)
    assert sender.answer()
    browser = browse(centre.page)
    trouble = "Rejected 3 recordings: expected a gather (5, 1000, 70)"
    wait_until(lambda: browser.text("#devices .trouble") == trouble, timeout_s=60, what="why")
    assert browser.errors == []


def test_no_section_is_longer_than_two_screens_of_a_small_phone(centre, browse, dealers, tmp_path):
    sender = dealers(centre.service.receiver.endpoint)
    for device in range(40):
        sender.send(latent_record(device, 1, survey=3, sequence=1))
        assert sender.answer()
    flags = ["uncertain: the mean uncertainty is 326 m/s (limit 300 m/s); expect errors of that size"]
    for event in range(1, 21):
        put_map(tmp_path / "data", event, devices=(0, 1), flags=flags, consistency={"latents": 0.4})
    browser = browse(f"{centre.page}events/1/20", width=360, height=640)
    wait_until(lambda: shown(browser, 20), timeout_s=60, what="the event")
    wait_until(lambda: browser.text("#events"), timeout_s=60, what="the list of events")
    wait_until(lambda: browser.text("#d-all") == "Show all 40", timeout_s=60, what="all devices")
    for plot in ("velocity", "uncertainty", "profile"):
        click(browser, f"#plot-choice [data-plot={plot}]")
        for section in ("section", "devices-card", "events-card"):
            height = browser.value(f"document.getElementById('{section}').offsetHeight")
            assert 0 < height <= 2 * 640, (section, plot, height)
    assert browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.errors == []


def test_an_empty_centre_says_how_to_add_a_device(centre, browse):
    browser = browse(centre.page)
    wait_until(
        lambda: "No event has come yet" in browser.text("#s-wait"), timeout_s=60, what="what is missing"
    )
    assert browser.text("#s-title") == "Waiting for the first event"
    wait_until(
        lambda: browser.text("#d-none") == "No device has been seen yet.", timeout_s=30, what="devices"
    )
    assert browser.value("document.querySelector('#add-device').open")
    guide = browser.text("#add-device")
    assert "python -m firmware_py run --config node.toml" in guide
    assert "runs without keys" in guide and "epic keys new" not in guide
    for part in ("tiles", "events-card", "s-body"):
        assert browser.value(f"document.getElementById('{part}').offsetHeight") == 0
    assert browser.errors == []


def test_a_wrong_token_is_said_where_it_is_entered_and_a_changed_one_on_the_page(tmp_path, browse):
    token = "a-token-of-enough-characters"
    centre = Centre(tmp_path, page_token=token)
    address = centre.page.removeprefix("http://").strip("/")
    try:
        browser = browse(f"{centre.page}events/1/1")
        for given, found in (("wrong-" + token, "not the token of this page"), (token, "Event 1")):
            wait_until(lambda: browser.text("form"), timeout_s=60, what="form")
            browser.value(f"document.querySelector('#token').value = '{given}'")
            click(browser, "form button")
            wait_until(lambda found=found: found in browser.text("body"), timeout_s=60, what=found)
        assert browser.value("location.pathname + location.search") == "/events/1/1"
    finally:
        centre.stop()
    changed = Centre(tmp_path, address, page_token="another-" + token)
    try:
        wait_until(
            lambda: "no longer takes this browser's token" in browser.text("#lost"), timeout_s=60, what="why"
        )
    finally:
        changed.stop()
