"""The options that `vstream ask`, `watch` and `serve` share, declared once, and what they mean to an engine.

This module knows nothing of terminals or of how answers are shown.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_type_hints

import typer

if TYPE_CHECKING:
    from vstream.models.options import LoadOptions
    from vstream.sources import Source

MIB = 1 << 20
DEFAULT_DISK_MIB = 4096  # as in `vstream.config`, which is not loaded for the sake of a help text
MAX_DISK_MIB = 1 << 24
MAX_THREADS = 256

Result = TypeVar("Result")


def _option(help_text: str, *names: str, panel: str | None = None, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=metavar, show_default=False)


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Which model, and how a session watches; None is "not given", and leaves the default of `vstream.config`."""

    model: Annotated[
        str | None,
        _option("What reads the video: a name from `vstream models`, a checkpoint's folder or its name on the hub."),
    ] = None
    fps: Annotated[float | None, _option("Frames taken per second of video (1).")] = None
    retrieve: Annotated[int | None, _option("Tokens of past detail brought back for a question.")] = None
    window: Annotated[int | None, _option("Most recent tokens, always seen by answers.")] = None
    preset: Annotated[
        str | None,
        _option("A way to remember: default, star, infinipot, sink-window ... (see vstream lab)."),
    ] = None
    policy: Annotated[str | None, _option("How the past is searched: maxsim, prototypes, embedding ...")] = None
    selection: Annotated[str | None, _option("One choice for all layers, or each its own: shared or per-layer.")] = None
    clip_frames: Annotated[int | None, _option("Frames encoded together.")] = None
    scene_cut: Annotated[
        float | None,
        _option("Ends a clip where the picture changes so much more than before, of 255, that a new scene begins."),
    ] = None
    skip_duplicates: Annotated[
        float | None, _option("Skips frames in which no part changed by more than this, of 255, within their clip.")
    ] = None
    drop_similarity: Annotated[
        float | None,
        _option("Leaves out parts of frames that are more alike than this cosine to what their clip showed there."),
    ] = None
    max_tokens: Annotated[int | None, _option("Longest answer, in tokens (64).", panel="Answers")] = None
    temperature: Annotated[float | None, _option("0 is greedy, the default.", panel="Answers")] = None
    top_p: Annotated[float | None, _option("Nucleus sampling, in (0, 1].", panel="Answers")] = None
    seed: Annotated[int | None, _option("Of the sampling.", panel="Answers")] = None
    dialogue: Annotated[
        bool,
        typer.Option(
            "--dialogue",
            help="Questions see earlier ones and their answers.",
            rich_help_panel="Answers",
        ),
    ] = False
    dialogue_tokens: Annotated[
        int | None, _option("Most tokens of earlier turns; the oldest are left out (256).", panel="Answers")
    ] = None
    device_mib: Annotated[float | None, _option("Memory on the device, MiB, for every source.", panel="Budgets")] = None
    host_mib: Annotated[float | None, _option("Memory in RAM, MiB, for every source.", panel="Budgets")] = None
    disk_mib: Annotated[
        float | None,
        _option(f"Memory on disk, MiB, for every source ({DEFAULT_DISK_MIB} with --memory).", panel="Budgets"),
    ] = None
    threads: Annotated[int | None, _option("CPU threads (all cores).", panel="Budgets")] = None
    device: Annotated[
        str | None, _option("Where the model computes: auto, cpu, cuda or cuda:1 (auto).", panel="Model")
    ] = None
    dtype: Annotated[
        str | None,
        _option("What it computes in: auto, float32, bfloat16, float16 (its own on a GPU, else 32).", panel="Model"),
    ] = None
    device_map: Annotated[
        str | None, _option("auto: the package accelerate places the weights, on one device.", panel="Model")
    ] = None
    quantize: Annotated[
        str | None,
        _option("Rounds weights: bitsandbytes-8bit, bitsandbytes-4bit or torchao-int8.", panel="Model"),
    ] = None
    max_pixels: Annotated[
        int | None, _option("Most pixels of a frame, for models whose frames keep their shape.", panel="Model")
    ] = None
    system: Annotated[str | None, _option("System prompt in place of the chat template's own.", panel="Model")] = None
    revision: Annotated[str | None, _option("Branch, tag or commit of a model on the hub.", panel="Model")] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetches nothing from the hub.", rich_help_panel="Model")
    ] = False
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Lets a checkpoint's own tokenizer code run.", rich_help_panel="Model"
        ),
    ] = False

    def loading(self) -> LoadOptions:
        """What was said about loading the model.

        Raises:
            ValueError: for a value that will not do.
        """
        from vstream.models.options import LoadOptions

        return LoadOptions.of(
            None,
            _given(
                device=self.device,
                dtype=self.dtype,
                device_map=self.device_map,
                quantize=self.quantize,
                max_pixels=self.max_pixels,
                system=self.system,
                revision=self.revision,
                local_files_only=self.offline,
                trust_remote_code=self.trust_remote_code,
            ),
        )

    def settings(self, memory: Path | None, **more: Any) -> dict[str, Any]:
        """What was said about a session, by the names of `Config`; the rest is left to the model's own defaults.

        Raises:
            ValueError: for a value that will not do.
        """
        from vstream.config import Config, DecodeOptions
        from vstream.presets import check_preset

        if memory is None and self.disk_mib:
            raise ValueError("--disk-mib needs --memory: without a folder nothing is kept on disk")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"--threads must be a whole number from 1 to {MAX_THREADS}, got {self.threads}")
        if self.preset is not None:
            check_preset(self.preset)
        decode = _given(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )  # fmt: skip
        settings = _given(
            fps=self.fps,
            retrieve_tokens=self.retrieve,
            window_tokens=self.window,
            policy=self.policy,
            selection=self.selection,
            clip_frames=self.clip_frames,
            scene_cut=self.scene_cut,
            skip_duplicates=self.skip_duplicates,
            drop_similarity=self.drop_similarity,
            dialogue=self.dialogue,
            dialogue_tokens=self.dialogue_tokens,
            device_bytes=_bytes("--device-mib", self.device_mib, _ram_mib()),
            host_bytes=_bytes("--host-mib", self.host_mib, _ram_mib()),
            disk_bytes=_bytes("--disk-mib", self.disk_mib, MAX_DISK_MIB),
            **more,
        )
        settings["decode"] = DecodeOptions(**decode)
        Config(**settings)  # refuses what will not do before a model is loaded
        return settings


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """What `vstream ask` and `vstream watch` take besides."""

    memory: Annotated[
        Path | None,
        _option(
            "Folder where the memory is kept, and goes on from; with several sources, it holds a folder for each.",
            metavar="DIR",
        ),
    ] = None
    reader: Annotated[str, _option("What reads files: av or decord.")] = "av"
    transport: Annotated[str | None, _option("How rtsp:// cameras send: tcp or udp (tcp).")] = None
    evidence_dir: Annotated[Path | None, _option("Folder for the answers' pictures (JPEG).", metavar="DIR")] = None
    json: Annotated[bool, typer.Option("--json", help="One line of JSON per answer on stdout, nothing else.")] = False

    def open_source(self, given: str, max_side: int) -> Source:
        """Opens what the user named, frames at most `max_side` pixels long.

        Raises:
            ValueError: for an input that cannot be read, or a transport or reader that is not one.
            FileNotFoundError: if there is nothing of that name.
        """
        from vstream.sources import open_source

        if self.transport not in (None, "tcp", "udp"):
            raise ValueError(f"--transport must be tcp or udp, got {self.transport!r}")
        reader = cast("Literal['av', 'decord']", self.reader)
        return open_source(given, max_side=max_side, reader=reader, **_given(transport=self.transport))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _bytes(name: str, mib: float | None, most: int) -> int | None:
    if mib is None:
        return None
    if not 0 <= mib <= most:
        raise ValueError(f"{name} must be a number of MiB from 0 to {most}, got {mib:g}")
    return int(mib * MIB)


def _ram_mib() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


def takes_options(function: Callable[..., Result]) -> Callable[..., Result]:
    """Gives a typer command every field of the dataclass that it takes as `options` as an option of its own.

    Those that the dataclass shares with others come last in the help.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    kind: type[Any] = parameters["options"].annotation
    own = [p for p in parameters.values() if p.name != "options"]
    hints = get_type_hints(kind, include_extras=True)
    added = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in sorted(fields(kind), key=lambda one: one.name not in kind.__annotations__)
    ]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Result:
        options = kind(**{one.name: kwargs.pop(one.name) for one in added})
        return function(*args, options=options, **kwargs)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    command.__signature__ = inspect.Signature([*keyword_only, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return command
