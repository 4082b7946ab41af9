"""Define the page's routes: the page, JSON and downloads for it and for scripts, and the event stream."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from central.dashboard.access import Access, Shield
from central.dashboard.archive import (
    CHOICES,
    MAX_EVENT,
    MAX_SURVEY,
    Archive,
    NotInStore,
    Section,
    detail,
    preview,
    summary,
    to_json,
)
from central.dashboard.feed import Feed, rollout_dict, shown
from central.dashboard.metrics import RuntimeMetrics, metrics_text
from central.dashboard.totals import Totals
from central.errors import CentralError
from central.export.formats import FORMATS as EXPORTS
from central.export.formats import ExportError, export_map
from central.export.line import Line
from central.fleet.history import SPANS, read_history
from central.recordings.gathers import has_recording, read_recording
from central.recordings.picture import draw_gather
from central.storage.database import StoreError
from central.updates.rollout_store import RolloutStore
from firmware_py.runtime.log import Log, now_us

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
MAX_SIZE = 200
# Ids are SQLite's row numbers.
MAX_ID = (1 << 63) - 1
FORMATS = ("json", "float32")
# Files of an event; a format that is a folder is left to `epic central export`.
DOWNLOADS = {name: form.suffixes[0] for name, form in EXPORTS.items() if not form.folder}
# Downloads prepared at once; each takes a map, a library and up to a second of a core.
MAX_EXPORTING = 2
# Samples of a trace that the page draws, at most.
DRAWN_SAMPLES = 500


@dataclass(frozen=True)
class Site:
    """The centre that a page shows.

    Attributes:
        data_dir: Folder of its store.
        listen: Endpoint of the devices.
        keyed: True if devices need keys.
        running: Returns True if a centre is running on the store.
        line: Position of the survey's line, for coordinates in downloads.
    """

    data_dir: Path
    listen: str
    keyed: bool
    running: Callable[[], bool]
    line: Line | None = None


class QueryError(CentralError, ValueError):
    """A query parameter is not valid."""


class _NumberConvertor(IntegerConvertor):
    """Path convertor for a bounded number of digits; Python refuses to parse thousands."""

    regex = "[0-9]{1,40}"


register_url_convertor("number", _NumberConvertor())


class Json(JSONResponse):
    """JSON response for programs."""

    def render(self, content: Any) -> bytes:
        return to_json(content).encode()


def build_app(
    site: Site, token: str | None, feed: Feed, totals: Totals, log: Log, live: RuntimeMetrics | None
) -> ASGIApp:
    """Build the page of ``site``; with ``token`` None it is open to local users."""
    views = _Views(site, feed, totals, live)
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    page = _file(files["index.html"])
    routes = [
        Route("/", page),
        Route("/events/{survey:number}/{event:number}", page),
        *(Route(f"/static/{name}", _file(path)) for name, path in files.items()),
        Route("/api/totals", views.totals),
        Route("/api/events", views.events),
        Route("/api/events/{survey:number}/{event:number}", views.event),
        Route("/api/map/{survey:number}/{event:number}", views.map),
        Route("/api/recording/{survey:number}/{event:number}", views.recording),
        Route("/api/gather/{survey:number}/{event:number}", views.gather),
        Route("/api/export/{survey:number}/{event:number}", views.export),
        Route("/api/devices", views.devices),
        Route("/api/history/{survey:number}/{device:number}", views.history),
        Route("/api/centre", views.centre),
        Route("/api/rollout", views.rollout),
        Route("/api/stream", views.stream),
        Route("/metrics", views.metrics),
    ]
    refusals: dict = {
        NotInStore: _refuse(404),
        QueryError: _refuse(400),
        ExportError: _refuse(503),
        StoreError: _refuse(503),
    }
    app = Starlette(
        routes=routes, exception_handlers={**refusals, HTTPException: _refuse_http, Exception: _refuse_failed}
    )
    return Shield(Access(app, token), log)


def _refuse(status: int):
    async def answer(_: Request, error: Exception) -> Response:
        return Json({"error": str(error)}, status_code=status)

    return answer


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {
        404: f"{request.url.path}: no such address; see central/README.md for those there are",
        405: f"{request.method}: only GET and HEAD; the page changes nothing",
    }
    reason = reasons.get(error.status_code, error.detail)
    return Json({"error": reason}, status_code=error.status_code, headers=error.headers)


async def _refuse_failed(_: Request, __: Exception) -> Response:
    reason = "the page failed at this; the centre goes on, and its log says more"
    return Json({"error": reason}, status_code=500)


def _file(path: Path):
    """Serve a static file, read once; browsers revalidate it at each request."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=TYPES[path.suffix], headers=headers)

    return answer


class _Views:
    """Request handlers; Starlette calls them on worker threads, each with its own connection."""

    def __init__(self, site: Site, feed: Feed, totals: Totals, live: RuntimeMetrics | None) -> None:
        self._site = site
        self._data_dir = site.data_dir
        self._exporting = threading.BoundedSemaphore(MAX_EXPORTING)
        self._feed = feed
        self._totals = totals
        self._live = live

    def totals(self, _: Request) -> Response:
        with closing(Archive(self._data_dir)) as archive:
            self._totals.refresh(archive)
        return Json(self._totals.to_dict())

    def events(self, request: Request) -> Response:
        query = request.query_params
        size = _number(query, "size", 1, MAX_SIZE) or 20
        only = query.get("only", "all")
        if only not in CHOICES:
            raise QueryError(f"only: expected one of {', '.join(CHOICES)}, got {only!r}")
        before, survey = _number(query, "before", 1, MAX_ID), _number(query, "survey", 0, 0xFFFF)
        with closing(Archive(self._data_dir)) as archive:
            # Read one extra to know whether there is another page.
            found = archive.sections(before, size + 1, survey, only)
        rows = [summary(section) for section in found[:size]]
        if query.get("preview"):
            for row, section in zip(rows, found, strict=False):
                row["preview"] = preview(section)
        return Json({"events": rows, "before": rows[-1]["id"] if len(found) > size else None})

    def event(self, request: Request) -> Response:
        with closing(Archive(self._data_dir)) as archive:
            sections = archive.sections_of(request.path_params["survey"], request.path_params["event"])
            earlier, later = archive.beside(sections[0])
        maps = [detail(section) for section in sections]
        newest = sections[0].stored
        return Json(
            {
                "survey": newest.survey,
                "event": newest.event,
                "previous": earlier,
                "next": later,
                "maps": maps,
                "recording": has_recording(self._data_dir, newest.survey, newest.event),
            }
        )

    def map(self, request: Request) -> Response:
        query = request.query_params
        form = query.get("format", "json")
        if form not in FORMATS:
            raise QueryError(f"format: expected one of {', '.join(FORMATS)}, got {form!r}")
        id = _number(query, "id", 1, MAX_ID)
        section = self._section(request, id)
        if form == "json":
            return _json(section)
        # The values of an id never change, but its findings do when it is checked.
        return _binary(section, {"cache-control": "private, max-age=86400"} if id else {})

    def _section(self, request: Request, id: int | None) -> Section:
        """Return the requested event's newest map, or its map ``id``."""
        with closing(Archive(self._data_dir)) as archive:
            return archive.section(request.path_params["survey"], request.path_params["event"], id)

    def recording(self, request: Request) -> Response:
        gather = self._recording(request)
        shot = _number(request.query_params, "shot", 1, gather.shape[0]) or 1
        return _traces(gather[shot - 1], gather.shape[0])

    def _recording(self, request: Request) -> np.ndarray:
        survey, event = request.path_params["survey"], request.path_params["event"]
        gather = None
        if survey <= MAX_SURVEY and event <= MAX_EVENT:
            gather = read_recording(self._data_dir, survey, event)
        if gather is None:
            raise NotInStore(
                f"survey {survey}, event {event}: no recording in the store; ask the devices for it with: epic central "
                f"fetch {event}"
            )
        return gather

    def gather(self, request: Request) -> Response:
        """Return a picture of the recording, the gather modelled from the map, and the residual."""
        id = _number(request.query_params, "id", 1, MAX_ID)
        samples = self._recording(request)
        stored = self._section(request, id).stored
        picture = io.BytesIO()
        with self._exporting:
            draw_gather(picture, stored, samples)
        return Response(picture.getvalue(), media_type="image/png")

    def export(self, request: Request) -> Response:
        query = request.query_params
        kind = query.get("format", "")
        if kind not in DOWNLOADS:
            raise QueryError(f"format: expected one of {', '.join(DOWNLOADS)}, got {kind!r}")
        stored = self._section(request, _number(query, "id", 1, MAX_ID)).stored
        name = f"survey{stored.survey}-event{stored.event:06d}-revision{stored.revision}{DOWNLOADS[kind]}"
        with self._exporting, tempfile.TemporaryDirectory(prefix="epic-page-") as folder:
            path = Path(folder) / name
            export_map(stored, kind, path, self._site.line)
            content = path.read_bytes()
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def history(self, request: Request) -> Response:
        name = request.query_params.get("span", "hour")
        if name not in SPANS:
            raise QueryError(f"span: expected one of {', '.join(SPANS)}, got {name!r}")
        span = SPANS[name]
        samples = read_history(
            self._data_dir, request.path_params["survey"], request.path_params["device"], span
        )
        # Without a running centre: up to the last sample that was kept.
        until_s = now_us() // 1_000_000
        if samples and not self._site.running():
            until_s = samples[-1].at_s + span.step_s
        return Json(
            {
                "from_s": until_s - span.length_s,
                "until_s": until_s,
                "step_s": span.step_s,
                "columns": ["at_s", "lag_ms", "lost", "queue"],
                "samples": [astuple(sample) for sample in samples if sample.at_s >= until_s - span.length_s],
            }
        )

    def centre(self, _: Request) -> Response:
        return Json(
            {
                "listen": self._site.listen,
                "keyed": self._site.keyed,
                "running": self._site.running(),
                "downloads": {n: suffix for n, suffix in DOWNLOADS.items() if EXPORTS[n].is_installed},
                "full": self._feed.full,
            }
        )

    def devices(self, _: Request) -> Response:
        with closing(Archive(self._data_dir)) as archive:
            return Json([shown(asdict(view)) for view in archive.devices(self._site.running())])

    def rollout(self, _: Request) -> Response:
        with closing(RolloutStore(self._data_dir)) as store:
            return Json([rollout_dict(rollout) for rollout in store.rollouts()])

    def metrics(self, _: Request) -> Response:
        return Response(metrics_text(self._data_dir, self._live), media_type=CONTENT_TYPE_LATEST)

    async def stream(self, _: Request) -> Response:
        if self._feed.full:
            return Json({"error": "too many browsers listen already; close some pages"}, status_code=503)
        return StreamingResponse(self._feed.listen(), media_type="text/event-stream")


def _binary(section: Section, headers: dict[str, str]) -> Response:
    """Return velocity, then uncertainty, row by row from the surface down: little-endian float32."""
    stored = section.stored
    nz, nx = stored.velocity_mps.shape
    maps = (stored.velocity_mps, stored.uncertainty_mps)
    body = b"".join(values.astype("<f4").tobytes() for values in maps)
    headers = {
        **headers,
        "x-epic-id": str(section.id),
        "x-epic-shape": f"2,{nz},{nx}",
        "x-epic-partial": str(stored.partial).lower(),
    }
    return Response(body, media_type="application/octet-stream", headers=headers)


def _traces(shot: np.ndarray, n_shots: int) -> Response:
    """Return one shot ``(T, R)`` for drawing, decimated by averaging: little-endian float32, time by receiver."""
    step = -(-shot.shape[0] // DRAWN_SAMPLES)
    whole = shot[: shot.shape[0] // step * step]
    decimated = whole.reshape(-1, step, shot.shape[1]).mean(axis=1)
    headers = {"x-epic-shape": ",".join(map(str, decimated.shape)), "x-epic-shots": str(n_shots)}
    return Response(decimated.astype("<f4").tobytes(), media_type="application/octet-stream", headers=headers)


def _json(section: Section) -> Response:
    stored = section.stored
    content = {
        **detail(section),
        "dx_m": stored.provenance["acquisition"]["dx_m"],
        "velocity_mps": stored.velocity_mps.astype(float).round(1).tolist(),
        "uncertainty_mps": stored.uncertainty_mps.astype(float).round(1).tolist(),
    }
    return Json(content)


def _number(query: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    # Digits only, and few enough to parse quickly.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise QueryError(f"{name}: expected a whole number from {low} to {high}, got {text[:40]!r}")
    return int(text)
