"""LoadOptions: how a checkpoint is loaded: from where, in which precision, onto which device.

Importing it loads neither torch nor transformers. It knows nothing of what a model does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Quantize = Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]
_FOR_ANY_MODEL = ("device", "dtype", "seed", "local_files_only")
_OF_THE_MEMORY = ("quantize", "max_pixels", "system")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        device: where it computes: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        dtype: what it computes in; "auto" is the checkpoint's own on a GPU, float32 on a CPU (where 16 bits are slow).
        device_map: "auto" leaves it to the package accelerate where weights go; all must find room on one device.
        revision: branch, tag or commit of a repository on the hub.
        local_files_only: nothing is fetched.
        trust_remote_code: whether a checkpoint's own tokenizer code may run. Model code of a checkpoint never does.
        quantize: weights are rounded while they are loaded; None leaves a checkpoint as it is.
        max_pixels: the most pixels of a frame, for families whose frames keep their shape.
        system: the system prompt, None for the chat template's own.
        seed: of weights that are random.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    device_map: Literal["auto"] | None = None
    revision: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False
    quantize: Quantize | None = None
    max_pixels: int | None = None
    system: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for a value that is not allowed."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                known = ", ".join("nothing" if one is None else str(one) for one in allowed)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        whole = isinstance(self.max_pixels, int) and not isinstance(self.max_pixels, bool) and self.max_pixels >= 1
        if self.max_pixels is not None and not whole:
            raise ValueError(f"max_pixels must be a whole number >= 1, or None, got {self.max_pixels!r}")
        for name in ("revision", "system"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty; leave it out or give some text")

    @classmethod
    def of(cls, options: Self | None, single: Mapping[str, Any]) -> Self:
        """All options, or single ones by name; `dtype` may be torch's, and None is "auto".

        Raises:
            ValueError: for both, an unknown name, or a value that is not allowed.
        """
        if options is not None:
            if single:
                raise ValueError("give options or single ones, not both")
            return options
        names = [one.name for one in fields(cls)]
        if unknown := sorted(single.keys() - set(names)):
            raise ValueError(f"there is no loading option {unknown[0]!r}; there are {', '.join(names)}")
        given = {name: value for name, value in single.items() if value is not None}
        for name in given.keys() & {"device", "dtype"}:
            given[name] = str(given[name]).removeprefix("torch.")
        return cls(**given)

    def check_plain(self, model: str) -> None:
        """Raises `ValueError` for an option that a model without a checkpoint cannot follow."""
        for one in fields(self):
            if one.name not in _FOR_ANY_MODEL and getattr(self, one.name) != one.default:
                raise ValueError(
                    f"{one.name} is an option of checkpoints, but {model!r} is built in; leave it out, or give a "
                    "checkpoint's folder or its name on the hub"
                )

    def changes(self) -> tuple[object, ...]:
        """What of them gives other keys and values: part of the model's fingerprint; empty where nothing is set."""
        return tuple((name, value) for name in _OF_THE_MEMORY if (value := getattr(self, name)) is not None)


_CHOICES: dict[str, tuple[object, ...]] = {
    "dtype": get_args(Dtype),
    "device_map": (None, "auto"),
    "quantize": (None, *get_args(Quantize)),
}
