"""The page in headless Chromium, served by a centre at work."""

import json
import threading

import pytest
from browser import Browser, find_chromium
from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from waiting import wait_until

from central.config import CentralConfig
from central.fleet.rates import keep_rate
from central.service import Service
from central.storage.map_store import NewMap, Store
from firmware_py.runtime.log import Log

pytestmark = [
    pytest.mark.skipif(not find_chromium(), reason="chromium is not installed (.ci/packages)"),
    pytest.mark.slow,
]


class Centre:
    """A centre with a page on a port of its own."""

    def __init__(self, folder, address="127.0.0.1:0"):
        self._log_path = folder / "central.jsonl"
        central = {
            "listen": "tcp://127.0.0.1:*",
            "data_dir": folder / "data",
            "deadline_s": 0.3,
            "pictures": False,
            "page_listen": address,
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


def refine_event(data_dir, event, **found):
    """What `epic central refine` leaves in the store, and `check` at once."""
    store = Store(data_dir)
    start = store.get(event)
    key = (start.survey, start.event, start.model_hash)
    refinement = {"by": "latents", "of_revision": start.revision, "misfit": [4.0, 1.25]}
    provenance = {**start.provenance, "refinement": refinement, **found}
    maps = (start.velocity_mps + 10, start.uncertainty_mps)
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
    assert browser.text("#readout") == "15 m along, 355 m deep: 2,002 ± 1 m/s"
    assert browser.value("document.documentElement.scrollWidth") <= 412

    wait_until(lambda: browser.text("#events"), what="list")
    browser.value("document.querySelector('#events button').click()")
    wait_until(lambda: browser.value("document.querySelector('#live').ariaPressed") == "false", what="past")
    send(2, 0, 1, 2, 3, 4)
    wait_until(lambda: "Event 2" in browser.text("#events"), timeout_s=60, what="the new one in the list")
    check_event(tmp_path / "data", 2, 0.2)
    check_event(tmp_path / "data", 1, 0.3)
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
