"""`vstream memory`: lists memories, checks them, makes them smaller, carries them elsewhere, removes old ones.

Heavy packages are imported by the commands that need them. What is done is in `memories.py` and `vstream.memory`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

memory = typer.Typer(help="Lists memories, checks, compacts, exports, imports and prunes them.")

Folder = Annotated[Path, typer.Argument(help="A memory folder.", metavar="DIR")]
Root = Annotated[Path, typer.Argument(help="A folder that holds memories.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@memory.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Lists memories, checks, compacts, exports, imports and prunes them."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@memory.command("list")
def list_(root: Root, json: Json = False) -> None:
    """Lists every memory below a folder."""
    from vstream.app.memories import memories_listing
    from vstream.app.output import print_json

    rows = memories_listing(root)
    if json:
        print_json({"memories": rows})
    else:
        _print_rows([_told(row, root) for row in rows], f"there is no memory below {root}")
        for row in rows:
            if row["damaged"]:
                print(f"damaged: {row['damaged']}")


@memory.command()
def verify(folder: Folder, json: Json = False) -> int:
    """Reads all of a memory and compares every checksum; exits with 1 if anything is damaged."""
    from vstream.app.memories import audit_memory, memory_in
    from vstream.app.output import print_json
    from vstream.app.terminal import megabytes

    found = audit_memory(memory_in(folder))
    if json:
        print_json(found)
    elif found["whole"]:
        print(f"{found['folder']} is whole: {found['blocks']} blocks, {megabytes(found['bytes'])}")
    else:
        for damage in found["damages"]:
            print(_damage(damage))
        print(f"{found['folder']} is damaged: {_count(len(found['damages']), 'complaint')}")
    return 0 if found["whole"] else 1


@memory.command()
def compact(folder: Folder) -> None:
    """Gives back the space that a memory no longer uses. Nobody may have it open."""
    from vstream.app.memories import memory_in
    from vstream.app.terminal import megabytes
    from vstream.memory.upkeep import compact as compact_memory

    before, after = compact_memory(memory_in(folder))
    print(f"{folder}: {before} bytes before ({megabytes(before)}), {after} now ({megabytes(after)})")


@memory.command("export")
def export(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE.vstream")],
) -> None:
    """Writes a memory as one file, for another machine."""
    from vstream.app.memories import memory_in
    from vstream.app.terminal import megabytes
    from vstream.memory.archive import export_memory

    num_bytes = export_memory(memory_in(folder), file)
    print(f"{file} holds {folder}, {megabytes(num_bytes)}")


@memory.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `vstream memory export` wrote.", metavar="FILE.vstream")],
    folder: Annotated[Path, typer.Argument(help="The memory folder to make.", metavar="DIR")],
) -> None:
    """Makes a memory folder of an exported file, once all of it has been checked."""
    from vstream.app.memories import check_state
    from vstream.memory.archive import import_memory

    count = import_memory(file, folder, check_state)
    print(f"{folder} holds {count} blocks; ask it: vstream ask {folder} QUESTION")


@memory.command()
def prune(
    root: Root,
    keep_days: Annotated[float | None, typer.Option(help="Keep those written to in so many last days.")] = None,
    keep_bytes: Annotated[str | None, typer.Option(help="Keep the newest that fit, such as 500M or 20G.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Keep so many of the newest.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without, they are only listed.")] = False,
    json: Json = False,
) -> None:
    """Removes whole memories, those first that were written to longest ago; never one that is open."""
    from vstream.app.memories import Rule, bytes_of, plan_pruning
    from vstream.app.memories import prune as remove_all
    from vstream.app.output import print_json

    rule = Rule(keep_days, None if keep_bytes is None else bytes_of(keep_bytes), keep_last)
    plan = plan_pruning(root, rule)
    if not json:
        rows = [{"goes": str(one.folder), "title": one.title, "bytes": one.num_bytes} for one in plan.going]
        _print_rows(rows, "nothing goes")
    done = remove_all(root, plan) if yes else plan
    if json:
        folders = {name: [str(one.folder) for one in getattr(done, name)] for name in ("going", "spared")}
        print_json({("removed" if yes else "going"): folders["going"], "open": folders["spared"]})
        return
    for one in done.spared:
        print(f"{one.folder} is open and stays")
    total = sum(one.num_bytes for one in done.going)
    if done.going:
        print(
            f"{_count(len(done.going), 'memory')}, {total} bytes: "
            + ("removed" if yes else "give --yes to remove them")
        )


def _print_rows(rows: list[dict[str, Any]], nothing: str) -> None:
    from rich.console import Console

    from vstream.app.terminal import rows_table

    if rows:
        Console(highlight=False).print(rows_table(rows))
    else:
        print(nothing)


def _told(row: dict[str, Any], root: Path) -> dict[str, str]:
    """A memory as a row for people."""
    from vstream.app.terminal import megabytes
    from vstream.types import format_seconds

    def at(seconds: float | None) -> str:
        return "" if seconds is None else format_seconds(seconds)

    name = str(Path(row["folder"]).relative_to(root))
    told = {"memory": row["title"] or (root.name if name == "." else name)}
    if row["title"]:
        told["memory"] += f" ({name})"
    blocks = ", ".join(f"{count} {level}" for level, count in row.get("blocks", {}).items())
    return told | {
        "source": row.get("source") or "",
        "model": row.get("model") or "",
        "watched": f"{at(row.get('start_seconds'))}-{at(row.get('end_seconds'))}".strip("-"),
        "blocks": "damaged" if row["damaged"] else blocks,
        "size": megabytes(row["bytes"]),
        "created": (row.get("created") or "")[:10],
        "open": row.get("open") or "no",
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun.removesuffix('y') + 'ies' if noun.endswith('y') else noun + 's'}"


def _damage(damage: dict[str, Any]) -> str:
    from vstream.types import format_seconds

    if damage["start_seconds"] is None:
        return str(damage["what"])
    return f"{format_seconds(damage['start_seconds'])}-{format_seconds(damage['end_seconds'])}  {damage['what']}"
