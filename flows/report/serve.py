"""Server of the home page and of the runs' pages: ``python -m flows.report.serve``, started by `dora up`.

Read-only: GET alone is answered, and a page is rendered from the store on request; pages of ended runs stay in memory. Every path but
``/health``, which answers whether the store can be read, requires the user and password of the other servers, and requests under foreign
host names are refused (DNS rebinding). Pages load nothing: a content security policy refuses scripts and requests, whatever a name in the
data may hold.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import threading
from binascii import Error as BadBase64
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dora_core.environment import set_default
from dora_core.errors import DoraError, ServiceError
from flows.report.find import ReportError
from infra.back_ends import names_of
from infra.settings import Settings
from infra.store.store import Store

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
HEALTH = "/health"
"""Path for health checks, which have no password: no data, as Prefect's and MLflow's own."""
KEPT = 64
"""Pages of ended runs in memory, about 1 MB each."""
ENDED = ("completed", "failed", "stopped", "cancelled")


class Guard:
    """ASGI middleware: requires HTTP basic authentication for every path but :data:`HEALTH`."""

    def __init__(self, app: ASGIApp, login: tuple[str, str] | None):
        self._app = app
        self._wanted = None if login is None else ":".join(login).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = None if scope["path"] == HEALTH else self._wanted
        if wanted is not None and not secrets.compare_digest(_given(Headers(scope=scope).get("authorization", "")), wanted):
            refusal = PlainTextResponse("user and password are required", 401, {"www-authenticate": 'Basic realm="dora", charset="UTF-8"'})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _given(authorization: str) -> bytes:
    """User and password of the header; empty where it holds none."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        return base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (BadBase64, ValueError):
        return b""


class Pages:
    """Rendered pages of one home. Rendering is serialised: matplotlib's style is global."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._lock = threading.Lock()
        self._ended = lru_cache(KEPT)(self._rendered)

    @property
    def store(self) -> Store:
        return Store(self._settings.store_uri)

    def home(self) -> str:
        from flows.report.home import render_home
        from infra.tracking.model_registry import RegistryError, versions

        places = self._settings.effective()
        own = {
            "Prefect": (places.prefect_api_url or "").removesuffix("/api"),
            "MLflow": places.mlflow_uri,
            "Ray": places.ray_dashboard or "",
        }
        pages = {title: places.page(url) for title, url in own.items() if url.startswith("http")}
        champions, missing = [], ""
        try:
            champions = sorted((one for one in versions(places.mlflow_uri) if one.aliases), key=lambda one: (one.model, one.aliases))
        except (ServiceError, RegistryError) as error:
            missing = f"the registry of models does not answer: {error.message}"
        with self._lock:
            return render_home(self.store, pages, champions, missing, pages.get("MLflow"))

    def run(self, run_id: str) -> str:
        """Return the page of a run.

        Raises:
            ReportError: there is none.
        """
        from flows.report.find import manifest_of

        if "/" in run_id or run_id.startswith("."):
            raise ReportError(f"{run_id!r} is not the id of a run")
        run = manifest_of(self.store, run_id)
        with self._lock:
            # An ended run changes where a person decides later, or where a stage is deleted: its manifest is part of the key.
            return self._ended(run_id, run.model_dump_json()) if run.status in ENDED else self._rendered(run_id, "")

    def _rendered(self, run_id: str, _manifest: str) -> str:
        from flows.report.render import page_of

        return page_of(self.store, run_id)


def application(settings: Settings) -> Starlette:
    """Return the ASGI application."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Route

    pages = Pages(settings)

    def home(request: Request) -> Response:
        return HTMLResponse(pages.home(), headers=HEADERS)

    def run(request: Request) -> Response:
        return HTMLResponse(pages.run(request.path_params["run_id"]), headers=HEADERS)

    def health(request: Request) -> Response:
        try:
            pages.store.list("runs")
        except DoraError:  # its text names places, and this path is open
            return PlainTextResponse("the store cannot be read", 503, headers=HEADERS)
        return PlainTextResponse("OK", headers=HEADERS)

    def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, DoraError)
        return PlainTextResponse(str(error), 404 if isinstance(error, ReportError) else 503, headers=HEADERS)

    names = names_of(settings.back_ends.host)
    if settings.public_url and (public := urlsplit(settings.public_url.replace("{service}", "home")).hostname):
        names = [*names, public]
    return Starlette(
        routes=[Route("/", home), Route("/runs/{run_id}", run), Route(HEALTH, health)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(Guard, login=settings.credentials())],
        exception_handlers={DoraError: failed},
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.report.serve", description="Serve the home page of `dora up`.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=4100, help="port")
    arguments = parser.parse_args(argv)
    import uvicorn

    settings = Settings()
    for name, value in settings.client_environment().items():
        set_default(name, value)  # under compose MLflow has a password of its own
    uvicorn.run(application(settings), host=arguments.host, port=arguments.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
