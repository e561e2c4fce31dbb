"""All benchmarks, a line each. It knows nothing of what they ask."""

from __future__ import annotations

from vstream.app.bench.base import Benchmark
from vstream.app.bench.egoschema import EgoSchema
from vstream.app.bench.inf_streams import InfStreams
from vstream.app.bench.mlvu import Mlvu
from vstream.app.bench.mlvu_generation import MlvuGeneration
from vstream.app.bench.needle import Needle
from vstream.app.bench.ovbench import OvBench
from vstream.app.bench.ovo_bench import OvoBench
from vstream.app.bench.streamingbench import Omni, Proactive, Real, Sqa
from vstream.app.bench.video_mme import VideoMme
from vstream.app.bench.vstream_qa import RvsEgo, RvsMovie

BENCHMARKS: tuple[type[Benchmark], ...] = (
    Real,
    Omni,
    Sqa,
    Proactive,
    OvoBench,
    OvBench,
    RvsEgo,
    RvsMovie,
    InfStreams,
    Mlvu,
    MlvuGeneration,
    EgoSchema,
    VideoMme,
    Needle,
)


def benchmark_of(name: str) -> type[Benchmark]:
    """The benchmark of a name.

    Raises:
        ValueError: if there is none.
    """
    for one in BENCHMARKS:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in BENCHMARKS)
    raise ValueError(f"there is no benchmark {name!r}; choose from {known}")
