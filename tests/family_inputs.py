"""What each family's stock model is given for a conversation about a stream: the reference of `test_family.py`.

A family's function tells the text and the pixels alone. Where features go, and which position each token has, the stock
forward works out for itself. Texts are cut as whole texts; nothing here asks our adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from streams import QUESTION
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_MEDIA_OUTTRO,
    FRAME_TIMESTAMP_MESSAGE,
    get_image_prompt_string,
)

from vstream.models.chat import SENTINEL, render_turn
from vstream.models.checkpoint import Checkpoint
from vstream.models.patches import PatchSpec
from vstream.models.pictures import PictureSpec, prepare
from vstream.types import Frame

Inputs = dict[str, Any]
"""Keywords of the stock forward: `input_ids` [1, N] and what the family takes beside them."""


@dataclass(frozen=True)
class Stock:
    """A checkpoint as transformers has it.

    Attributes:
        folder: where it is.
        model: the stock model.
        tokenizer: its tokenizer.
    """

    folder: Path
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Stock:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
        return cls(folder, model, AutoTokenizer.from_pretrained(folder))

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def rendered(self, kind: str = "video") -> str:
        """The chat template around QUESTION, with a video or an image."""
        template = Checkpoint(self.folder, "stock").chat_template()
        return render_turn(self.tokenizer, template, kind).replace(SENTINEL, QUESTION)

    def text_ids(self, placeholder: str, shown: str, kind: str = "video") -> Tensor:
        """[1, N] ids of the chat template around QUESTION, with the text `shown` where it has the placeholder."""
        return torch.tensor([self.ids(self.rendered(kind).replace(placeholder, shown))])

    def conversation(self, shown: Sequence[int], placeholder: str) -> Tensor:
        """[1, N] ids of the chat template around QUESTION, with the ids `shown` where it has the placeholder."""
        before, _, after = self.rendered().partition(placeholder)
        return torch.tensor([[*self.ids(before), *shown, *self.ids(after)]])

    def pixels(self, frames: Sequence[Frame]) -> Tensor:
        """[T, 3, H, W] of pictures brought to one size; `test_pictures_are_prepared_...` compares them with PIL's."""
        spec = PictureSpec.from_config(Checkpoint(self.folder, "stock").picture_config())
        return prepare(frames, spec).to(self.model.dtype)


def clock(frame: Frame, form: str = "[{}:{:02}]") -> str:
    return form.format(*divmod(int(frame.pts_seconds), 60))


def llava_onevision(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """`[m:ss]` and a newline around each frame.

    The stock forward puts the tokens of a whole video, of which the last is its newline, where `<video>` stands, in
    order. So one `<video>` a token between the times, and one more before the question, is our layout.
    """
    video, per_frame = stock.model.config.video_token_id, 4
    shown = [token for frame in frames for token in (*stock.ids(clock(frame)), *[video] * per_frame, *stock.ids("\n"))]
    ids = stock.conversation([*shown, video], "<video>")
    return {"input_ids": ids, "pixel_values_videos": stock.pixels(frames)[None]}


def smolvlm(stock: Stock, frames: Sequence[Frame], kind: str = "video") -> Inputs:
    """Transformers' own words and marks around frames, all in one picture without tiles."""
    picture = get_image_prompt_string(0, 0, 4, "<fake_token_around_image>", "<image>", "<global-img>")
    times = (FRAME_TIMESTAMP_MESSAGE.format(timestamp=clock(frame, "{:02}:{:02}")) for frame in frames)
    shown = "You are provided the following series of frames from a video.\n"
    shown += "".join(time + picture for time in times) + DEFAULT_MEDIA_OUTTRO
    return {"input_ids": stock.text_ids(f"<{kind}>", shown, kind), "pixel_values": stock.pixels(frames)[None]}


def idefics3(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """As SmolVLM2; the template has an image where the frames go."""
    return smolvlm(stock, frames, "image")


def llava_next_video(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """`[m:ss]` and a newline around each frame, whose tokens go where `<video>` stands, in order."""
    video, per_frame = stock.model.config.video_token_id, 4
    shown = [token for frame in frames for token in (*stock.ids(clock(frame)), *[video] * per_frame, *stock.ids("\n"))]
    return {"input_ids": stock.conversation(shown, "<video>"), "pixel_values_videos": stock.pixels(frames)[None]}


def internvl(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """The processor's own text for a video, with the time where it has the frame's number."""
    shown = "\n".join(f"Frame {clock(frame)}: <img>{'<IMG_CONTEXT>' * 4}</img>" for frame in frames)
    return {"input_ids": stock.text_ids("<video>", shown), "pixel_values": stock.pixels(frames)}


def qwen2_vl(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """`[m:ss]` before each pair of frames, which is a video of its own."""
    return _qwen_videos(stock, frames, lambda seconds: clock(Frame(seconds, frames[0].image)), volume=False)


def qwen3_vl(stock: Stock, frames: Sequence[Frame]) -> Inputs:
    """`<2.5 seconds>` before each pair of frames, all one video: the stock forward takes it apart."""
    inputs = _qwen_videos(stock, frames, lambda seconds: f"<{seconds:.1f} seconds>", volume=True)
    grids = inputs["video_grid_thw"]
    return {**inputs, "video_grid_thw": torch.tensor([[len(grids), *grids[0, 1:].tolist()]])}


def _qwen_videos(stock: Stock, frames: Sequence[Frame], time_text: Callable[[float], str], *, volume: bool) -> Inputs:
    """Pairs of frames, the last with itself where it has no other; their time is the mean of both."""
    spec = PatchSpec.from_config(Checkpoint(stock.folder, "stock").picture_config(), volume=volume)
    rows, columns = spec.grid(*frames[0].image.shape[:2])
    start, end = stock.ids("<|vision_start|>"), stock.ids("<|vision_end|>")
    grid = [*start, *[stock.model.config.video_token_id] * rows * columns, *end]
    pairs = [(frames[first], frames[min(first + 1, len(frames) - 1)]) for first in range(0, len(frames), 2)]
    times = [time_text((one.pts_seconds + other.pts_seconds) / 2) for one, other in pairs]
    shown = [token for time in times for token in (*stock.ids(time), *grid)]
    ids = stock.conversation(shown, "<|vision_start|><|video_pad|><|vision_end|>")
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == stock.model.config.video_token_id).int() * 2,
        "pixel_values_videos": spec.patches(frames, rows, columns).to(stock.model.dtype),
        "video_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * len(pairs)),
    }


FLOAT32_ALONE = ("qwen3_vl_moe",)  # torch multiplies experts grouped, and that only up to 32 bits

INPUTS: dict[str, Callable[[Stock, Sequence[Frame]], Inputs]] = {
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava_next_video": llava_next_video,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
}
