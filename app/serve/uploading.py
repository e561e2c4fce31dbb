"""The route that takes video files in. What is kept of them, and for how long, is `Uploads`' business."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.datastructures import UploadFile

from vstream.app.serve import records
from vstream.app.serve.errors import ApiError, documented
from vstream.app.serve.uploads import SCHEME, Uploads

router = APIRouter(prefix="/v1")
CHUNK_BYTES = 1 << 20
FILE = {"schema": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
BODY = {
    "required": True,
    "content": {"multipart/form-data": {"schema": FORM}, "application/octet-stream": FILE, "video/mp4": FILE},
}


@router.post(
    "/uploads",
    tags=["uploads"],
    status_code=201,
    responses=documented(400, 404, 413, 415, 507),
    openapi_extra={"requestBody": BODY},
)
async def upload(
    request: Request, name: Annotated[str, Query(max_length=255, description="of a file that is sent raw")] = "video"
) -> records.UploadRecord:
    """Takes a video, as a form's `file` or as the whole body; `source` in the reply is what to open."""
    uploads: Uploads | None = request.app.state.uploads
    if uploads is None:
        raise ApiError(404, "this server takes no uploads", code="no_uploads")
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        path = await _save_form(request, uploads)
    else:
        path = await uploads.save(name, request.stream())
    return records.UploadRecord(name=path.name, source=f"{SCHEME}{path.name}", bytes=path.stat().st_size)


async def _save_form(request: Request, uploads: Uploads) -> Path:
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, 'a form needs a field "file" with the video in it', param="file")
        return await uploads.save(file.filename or "video", _chunks(file))


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(CHUNK_BYTES):
        yield chunk
