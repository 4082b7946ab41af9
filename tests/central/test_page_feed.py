"""The page's feed and server: what a listener hears, and how the server begins and ends."""

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from contextlib import closing
from functools import partial

import pytest
from page_maps import put_map
from waiting import wait_until

from central.config import CentralSection
from central.dashboard.app import STATIC
from central.dashboard.feed import MAX_LISTENERS, Feed
from central.dashboard.server import PageServer, check_free
from central.dashboard.totals import Totals
from central.storage.map_store import Store
from firmware_py.runtime.log import Log


@pytest.fixture
def put(data_dir):
    return partial(put_map, data_dir)


async def news(feed, *kinds):
    """Frames of the feed until each of ``kinds`` was there: {kind: content}."""
    found = {}
    async for text in feed.listen():
        for frame in filter(None, text.split("\n\n")):
            kind, data = frame.split("\n")
            found[kind.removeprefix("event: ")] = json.loads(data.removeprefix("data: "))
        if found.keys() >= set(kinds):
            return found
    return found


def test_a_listener_hears_what_there_is_and_then_what_comes(data_dir, put, tmp_path):
    put(1)
    feed = Feed(data_dir, Totals(), Log(tmp_path / "page.jsonl"), running=lambda: True)
    stop = threading.Event()
    watching = threading.Thread(target=feed.watch, args=(stop.wait,))
    watching.start()

    async def follow():
        async with asyncio.timeout(30):
            first = await news(feed, "alive", "totals", "section", "devices", "rollout")
            put(2, devices=(0, 4))
            while (second := await news(feed, "section", "totals"))["section"]["event"] != 2:
                pass
            with closing(Store(data_dir)) as store:
                store.amend(store.get(1), "consistency", {"latents": 0.3, "checked_us": 7})
            while not (third := await news(feed, "checked"))["checked"]:
                pass
            return first, second, third

    try:
        first, second, third = asyncio.run(follow())
    finally:
        stop.set()
        watching.join()
    assert first["alive"]["running"] is True
    assert (first["section"]["event"], first["totals"]["events"]) == (1, 1)
    assert third["checked"] == {"id": 1, "at_us": 7}
    assert first["rollout"] is None
    assert (second["section"]["partial"], second["section"]["devices"]) == (True, [0, 4])


LOSE = """
globalThis.EventSource = class {
  constructor() { queueMicrotask(() => this.onerror()); }
  addEventListener() {}
  close() {}
};
globalThis.fetch = async () => new Response(process.argv[2], { status: 502 });
const { listen } = await import("./feed.mjs");
listen([], () => {}, (state) => {
  console.log(JSON.stringify(state));
  process.exit(0);
});
"""


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
@pytest.mark.parametrize(
    ("body", "reason"), [("<html>502 Bad Gateway</html>", ""), ('{"full": true}', "full")]
)
def test_a_lost_centre_is_told_whatever_a_proxy_answers(tmp_path, body, reason):
    shutil.copy(STATIC / "feed.js", tmp_path / "feed.mjs")
    (tmp_path / "lose.mjs").write_text(LOSE)
    found = subprocess.run(
        ["node", tmp_path / "lose.mjs", body], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(found.stdout) == {"up": False, "sinceMs": 0, "reason": reason}


def test_what_fails_while_looking_is_told_and_tried_again(data_dir, put, tmp_path, monkeypatch):
    put(1)
    totals = Totals()
    refresh, failures = totals.refresh, iter([KeyError("planted")])

    def fail_once(archive):
        for failure in failures:
            raise failure
        refresh(archive)

    monkeypatch.setattr(totals, "refresh", fail_once)
    feed = Feed(data_dir, totals, Log(tmp_path / "page.jsonl"), running=lambda: True)
    stop = threading.Event()
    watching = threading.Thread(target=feed.watch, args=(stop.wait,))
    watching.start()

    async def follow():
        async with asyncio.timeout(30):
            while (found := await news(feed, "section", "problem"))["problem"] is not None:
                assert "planted" in found["problem"]
            return found["section"]

    try:
        section = asyncio.run(follow())
    finally:
        stop.set()
        watching.join()
    assert section["event"] == 1
    assert "planted" in (tmp_path / "page.jsonl").read_text()


def test_listeners_are_not_without_number(data_dir, tmp_path):
    async def listen_all():
        feed = Feed(data_dir, Totals(), Log(tmp_path / "page.jsonl"), running=lambda: True)
        streams = [feed.listen() for _ in range(MAX_LISTENERS)]
        for stream in streams:
            await anext(stream)
        full = feed.full
        for stream in streams:
            await stream.aclose()
        return full, feed.full

    assert asyncio.run(listen_all()) == (True, False)


@pytest.fixture
def serve(data_dir, tmp_path):
    """Runs a page's server on a thread: ``serve(address)`` returns what reads its log."""
    stop, threads = threading.Event(), []
    log = tmp_path / "server.jsonl"

    def start(address):
        section = CentralSection(listen="tcp://127.0.0.1:*", data_dir=data_dir)
        server = PageServer(section, address, Log(log), live=None)
        threads.append(threading.Thread(target=server.run, args=(stop,)))
        threads[-1].start()

        def logged(what):
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            return [line for line in lines if line["message"] == what]

        return logged

    yield start
    stop.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_the_server_pushes_and_ends_with_a_browser_on_the_line(serve, put):
    import httpx

    put(3)
    logged = serve("127.0.0.1:0")
    (line,) = wait_until(lambda: logged("page"), what="page")
    with httpx.Client(base_url=line["address"], timeout=20) as client:
        assert client.get("/").status_code == 200
        with client.stream("GET", "/api/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            found = (
                text for text in answer.iter_lines() if text.startswith("data: ") and '"event": 3' in text
            )
            assert json.loads(next(found).removeprefix("data: "))["event"] == 3


def test_a_port_in_use_is_said_once_and_ends_nothing(serve):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        logged = serve(address)
        (line,) = wait_until(lambda: logged("page_failed"), what="complaint")
    assert line["reason"].startswith(f"{address}: cannot listen there")


def test_the_page_is_announced_and_a_taken_port_too(data_dir, tmp_path):
    stop, said = threading.Event(), []
    section = CentralSection(listen="tcp://127.0.0.1:*", data_dir=data_dir)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="cannot listen there"):
            check_free(address)
        server = PageServer(section, address, Log(tmp_path / "log"), None, said.append)
        thread = threading.Thread(target=server.run, args=(stop,))
        thread.start()
        wait_until(lambda: said, what="the reason")
        stop.set()
        thread.join(timeout=20)
    (line,) = said
    assert line.startswith(f"no page: {address}: cannot listen there (Address already in use")
