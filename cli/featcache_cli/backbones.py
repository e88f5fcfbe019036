"""featcache backbones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from featcache_cli.output import Json, emit

app = typer.Typer(
    no_args_is_help=True,
    help="Which backbones there are. Example: featcache backbones list",
    rich_markup_mode=None,
)


@app.command("list")
def list_command(json: Json = False) -> None:
    """List all backbones.

    Example: featcache backbones list
    """
    from featcache.backbones.registry import REGISTRY
    from featcache.reports.table import table

    entries = list(REGISTRY.values())
    rows = [
        [one.name, one.size, one.min_size, f"{one.params / 1e6:.1f}", one.width, " ".join(one.options)]
        for one in entries
    ]
    header = ["backbone", "size", "least", "million weights", "features", "options"]
    emit(json, {"backbones": [asdict(one) for one in entries]}, lambda: table(header, rows))


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A backbone, such as mobilenet_v2:alpha=0.35")], json: Json = False
) -> None:
    """Show one backbone, and whether its ImageNet weights are on this machine.

    Example: featcache backbones show mobilenet_v2
    """
    from featcache.backbones.parse import requests
    from featcache.backbones.registry import get
    from featcache.backbones.weights import file_of

    [asked] = requests([name])
    entry, file = get(asked.spec.name), file_of(asked.spec, asked.preprocess.size)
    facts = {
        **asdict(entry),
        "size": asked.preprocess.size,
        "weights": None if file is None else str(file),
        "present": file is not None and file.exists(),
    }
    emit(json, facts, lambda: "\n".join(f"{key:12} {_plain(value)}" for key, value in facts.items()))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "-" if isinstance(value, tuple) else str(value or "-")
