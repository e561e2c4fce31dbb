"""The API's documentation as a page that loads nothing from elsewhere. Knows nothing of the routes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

ASSETS = "/docs/assets"


def install(app: FastAPI) -> None:
    """Puts the page at /docs. Swagger UI's files come with the package fastapi-offline."""
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=app.openapi_url or "",
            title="vstream API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None, "displayRequestDuration": True, "tryItOutEnabled": True},
        )


def _assets() -> Path:
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None, "fastapi-offline is in the extra `app`"
    assert found.origin is not None, "fastapi-offline is a package with files"
    return Path(found.origin).parent / "static"
