"""Authorise access to the page, and restrict what a browser may do with it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from html import escape
from urllib.parse import parse_qsl, urlencode

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firmware_py.runtime.log import Log

# Nothing but what the centre itself serves: no other host is ever asked for anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>EPIC: token</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="/static/page.css"><link rel="icon" href="/static/icon.svg">
<main class="ask"><h1><img src="/static/icon.svg" alt="" width="28" height="28"> EPIC</h1>
<form action="{path}">{hidden}<label for="token">Token of this page</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus{invalid}>
{wrong}<p class="note">It is <code>page_token</code>, or the content of <code>page_token_file</code>, in the centre's
central.toml.</p><button class="primary">Open</button></form></main></html>"""
_HIDDEN = '<input type="hidden" name="{name}" value="{value}">'
_WRONG = '<p id="wrong" class="bad" role="alert">This is not the token of this page. Try again.</p>\n'
_INVALID = ' aria-invalid="true" aria-describedby="wrong"'
# Addresses of the page itself.
_PAGE = re.compile(r"/(events/[0-9]{1,40}/[0-9]{1,40})?")
# Style of the token form.
_OPEN_PATHS = ("/static/page.css", "/static/icon.svg")


class Access:
    """Authorise requests: by ``token``, or without one by local access.

    The token comes as ``Authorization: Bearer``, as ``?token=`` (the browser then gets a cookie and is redirected to
    the same address without it), or as that cookie. Without a token the Host must be a name of loopback. This stops
    another site's page from reading this one through a browser under its own name (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._cookie = hashlib.sha256(b"epic-page " + self._token).hexdigest() if self._token else ""
        # Browsers send a host's cookies to all its ports: each token has a name of its own.
        self._cookie_name = f"epic-page-{self._cookie[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        answer = self._check_token(scope, headers) if self._token else _check_host(headers)
        await (answer or self._app)(scope, receive, send)

    def _check_token(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """Return None if the request is authorised, else the response."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = next((value for name, value in query if name == "token"), "").encode()
        rest = [(name, value) for name, value in query if name != "token"]
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        if given and self._is_token(given):
            if b"text/html" not in headers.get(b"accept", b""):
                return None
            address = "/"
            if _PAGE.fullmatch(scope["path"]):
                address = scope["path"] + (f"?{urlencode(rest)}" if rest else "")
            answer = RedirectResponse(address, status_code=303)
            answer.set_cookie(
                self._cookie_name, self._cookie, httponly=True, samesite="strict", max_age=30 * 86_400
            )
            return answer
        if kind.lower() == b"bearer" and self._is_token(bearer.strip()):
            return None
        if hmac.compare_digest(_cookie(headers, self._cookie_name.encode()), self._cookie.encode()):
            return None
        if scope["path"] in _OPEN_PATHS:
            return None
        if _PAGE.fullmatch(scope["path"]) and b"text/html" in headers.get(b"accept", b""):
            wrong, invalid = (_WRONG, _INVALID) if given else ("", "")
            # A browser replaces the query of a form's address by its fields.
            hidden = "".join(_HIDDEN.format(name=escape(name), value=escape(value)) for name, value in rest)
            return HTMLResponse(
                _ASK.format(path=scope["path"], hidden=hidden, wrong=wrong, invalid=invalid), status_code=401
            )
        tried = given or bearer
        reason = "this is not the token of this page" if tried else "this page needs its token"
        return _error(401, f"{reason}; give it as Authorization: Bearer TOKEN or ?token=TOKEN")

    def _is_token(self, given: bytes) -> bool:
        return self._token is not None and hmac.compare_digest(given, self._token)


def _cookie(headers: dict[bytes, bytes], name: bytes) -> bytes:
    """Return the value of a cookie; cookies of other services on the host may have any form."""
    for pair in headers.get(b"cookie", b"").split(b";"):
        found, _, value = pair.strip().partition(b"=")
        if found == name:
            return value
    return b""


def _check_host(headers: dict[bytes, bytes]) -> Response | None:
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        known = name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        known = False
    if known:
        return None
    return _error(421, f"host {host!r}: without page_token the page answers to localhost and 127.0.0.1 only")


def _error(status: int, reason: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": reason}, status_code=status, headers=headers)


class Shield:
    """Add ``HEADERS`` to every response; an inner fault ends in one log line."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items()]
                if b"cache-control" not in given:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            # Starlette has answered already (app.py), and raises for whoever keeps the log.
            self._log.write("page_error", path=scope.get("path"), reason=repr(error))
