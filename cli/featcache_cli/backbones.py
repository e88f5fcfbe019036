"""featcache backbones."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress

if TYPE_CHECKING:
    from featcache.backbones.fetch import Fetched

app = typer.Typer(
    no_args_is_help=True,
    help="Which backbones there are, and their weights. Example: featcache backbones list",
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
    name: Annotated[
        str, typer.Argument(help="A backbone, such as mobilenet_v2:alpha=0.35, or your own: model.keras:mode=tf")
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Build it, and list the layers that --tap can name and --tap auto takes.")
    ] = False,
    json: Json = False,
) -> None:
    """Show one backbone, whether its weights are on this machine, and with --layers what --tap can name.

    Example: featcache backbones show mobilenet_v2 --layers
    """
    from featcache.backbones.describe import facts_of, layers_of
    from featcache.backbones.parse import requests

    [asked] = requests([name])
    facts = facts_of(asked)
    found = [asdict(one) for one in layers_of(asked)] if layers else []
    emit(json, {**facts, "taps": found} if layers else facts, lambda: _shown(facts, found))


@app.command("fetch")
def fetch_command(
    names: Annotated[str, typer.Argument(help="Backbones, such as resnet50,mobilenet_v2:alpha=0.35:size=160")],
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Download ImageNet weights beforehand; a broken download is removed and made again.

    Example: featcache backbones fetch mobilenet_v2,resnet50
    """
    from featcache.backbones.fetch import fetch

    with progress(quiet) as draw:
        found = fetch(names, draw)
    emit(json, {"fetched": [asdict(one) for one in found]}, lambda: "\n".join(map(_fetched, found)))


def _fetched(one: Fetched) -> str:
    how = "downloaded" if one.downloaded else "was there already"
    return f"{one.backbone}: {one.file}, {one.bytes / 1e6:.1f} MB, {how}"


def _shown(facts: dict[str, Any], layers: list[dict[str, Any]]) -> str:
    from featcache.reports.table import table

    lines = "\n".join(f"{key:12} {_plain(value)}" for key, value in facts.items())
    if not layers:
        return lines
    rows = [[one["name"], _shape(one["shape"]), one["block"], "auto" if one["auto"] else ""] for one in layers]
    return f"{lines}\n\n{table(['--tap', 'gives', 'block', '--tap auto'], rows)}"


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if side is None else str(side) for side in shape)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "-" if isinstance(value, tuple) else str(value or "-")
