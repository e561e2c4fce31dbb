"""What files and cameras share: packets become frames, and frames become pictures, through PyAV (FFmpeg).

This module knows nothing of where packets come from, nor of time.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from vstream.sources.base import Source, fitted_size


class PyavSource(Source):
    """A source whose pictures are PyAV's video frames.

    Damaged packets and frames that the decoder marks as corrupt are counted in `errors`. Pixels are taken as square; a
    mirroring display matrix only turns.
    """

    def __init__(self, name: str, *, max_side: int) -> None:
        super().__init__(name, max_side=max_side)
        self._reformatter = VideoReformatter()

    def _decode_packet(self, stream: Any, packet: Any) -> list[av.VideoFrame]:
        """The frames that one more packet completes; None instead of a packet empties the decoder."""
        try:
            return list(stream.codec_context.decode(packet))
        except av.FFmpegError:
            self.errors += 1
            return []

    def _is_intact(self, frame: av.VideoFrame) -> bool:
        """Whether the decoder trusts the frame; one that it does not trust is counted."""
        if frame.is_corrupt:
            self.decoded += 1
            self.errors += 1
        return not frame.is_corrupt

    def _image(self, picture: av.VideoFrame, max_side: int) -> npt.NDArray[np.uint8]:
        width, height = fitted_size(picture.width, picture.height, max_side)
        rgb = self._reformatter.reformat(picture, width=width, height=height, format="rgb24")
        quarter_turns = round(picture.rotation / 90)
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))


def video_streams(container: av.container.InputContainer) -> list[Any]:
    """The video streams, without the attached pictures of music files."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]
