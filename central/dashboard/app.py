"""Define the page's routes: the page, JSON for it and for scripts, and the event stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from central.dashboard.access import Access, Shield
from central.dashboard.archive import CHOICES, Archive, NotInStore, Section, detail, preview, summary, to_json
from central.dashboard.feed import Feed, rollout_dict, shown
from central.dashboard.metrics import RuntimeMetrics, metrics_text
from central.dashboard.totals import Totals
from central.errors import CentralError
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
    data_dir: Path, token: str | None, feed: Feed, totals: Totals, log: Log, live: RuntimeMetrics | None
) -> ASGIApp:
    """Build the page over the store in ``data_dir``; with ``token`` None it is open to local users."""
    views = _Views(data_dir, feed, totals, live)
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    routes = [
        Route("/", _file(files["index.html"])),
        *(Route(f"/static/{name}", _file(path)) for name, path in files.items()),
        Route("/api/totals", views.totals),
        Route("/api/events", views.events),
        Route("/api/events/{survey:number}/{event:number}", views.event),
        Route("/api/map/{survey:number}/{event:number}", views.map),
        Route("/api/devices", views.devices),
        Route("/api/rollout", views.rollout),
        Route("/api/stream", views.stream),
        Route("/metrics", views.metrics),
    ]
    refusals: dict = {NotInStore: _refuse(404), QueryError: _refuse(400), StoreError: _refuse(503)}
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

    def __init__(self, data_dir: Path, feed: Feed, totals: Totals, live: RuntimeMetrics | None) -> None:
        self._data_dir = data_dir
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
            }
        )

    def map(self, request: Request) -> Response:
        query = request.query_params
        form = query.get("format", "json")
        if form not in FORMATS:
            raise QueryError(f"format: expected one of {', '.join(FORMATS)}, got {form!r}")
        id = _number(query, "id", 1, MAX_ID)
        with closing(Archive(self._data_dir)) as archive:
            section = archive.section(request.path_params["survey"], request.path_params["event"], id)
        if form == "json":
            return _json(section)
        # The values of an id never change, but its findings do when it is checked.
        return _binary(section, {"cache-control": "private, max-age=86400"} if id else {})

    def devices(self, _: Request) -> Response:
        with closing(Archive(self._data_dir)) as archive:
            return Json([shown(asdict(view)) for view in archive.devices(now_us())])

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
