"""featcache backbones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli import complete
from featcache_cli.base import App
from featcache_cli.output import Force, Json, Quiet, Trust, emit, in_shell, progress

if TYPE_CHECKING:
    from featcache.backbones.fetch import Fetched
    from featcache.backbones.importing import Imported

app = App(help="Which backbones there are, and their weights. Example: featcache backbones list")


@app.command("list")
def list_command(json: Json = False) -> None:
    """List all backbones.

    Example: featcache backbones list
    """
    from featcache.backbones.registry import REGISTRY
    from featcache.text import table

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
        str,
        typer.Argument(
            help="A backbone, such as mobilenet_v2:alpha=0.35, or your own: model.keras:mode=tf",
            autocompletion=complete.backbones,
        ),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Build it, and list the layers that --tap can name and --tap auto takes.")
    ] = False,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Show one backbone, whether its weights are on this machine, and with --layers what --tap can name.

    Example: featcache backbones show mobilenet_v2 --layers
    """
    from featcache.backbones.describe import facts_of, layers_of
    from featcache.backbones.parse import requests

    [asked] = requests([name], trust=trust)
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


@app.command("import")
def import_command(
    file: Annotated[
        str, typer.Argument(help="Your model: .keras, .h5, .hdf5 of Keras 2 or 3, or a SavedModel folder.")
    ],
    tap: Annotated[
        str, typer.Option("--tap", help="The layer to end at: its name, its place (-2), or the end of its name.")
    ] = "top",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The model to write. [default: FILE's name.keras, here]")
    ] = None,
    force: Force = False,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Make a Keras 3 model of your own file, cut at a layer, and show that it computes the same.

    Example: featcache backbones import old.h5 --tap flatten_1 -o cut.keras
    """
    from featcache.backbones.importing import import_model

    found = import_model(file, tap, out, trust=trust, force=force)
    emit(json, asdict(found), lambda: _imported(file, found))


def _imported(file: str, found: Imported) -> str:
    from featcache.backbones.importing import IMAGES

    compared = f"not compared with the original: {found.against}"
    if found.difference is not None:
        compared = (
            f"largest difference of outputs on {IMAGES} random images {found.difference:.1e} (against {found.against})"
        )
    backbone = in_shell(f"{found.model}:mode=MODE")
    return (
        f"{file} up to '{found.layer}': {found.weights} weight arrays equal to the file's; {compared}.\n"
        f"Model: {found.model}\n"
        f"Next: featcache extract IMAGES -b {backbone} --tap {in_shell(found.layer)} -o CACHE.h5"
    )


def _fetched(one: Fetched) -> str:
    how = "downloaded" if one.downloaded else "was there already"
    return f"{one.backbone}: {one.file}, {one.bytes / 1e6:.1f} MB, {how}"


def _shown(facts: dict[str, Any], layers: list[dict[str, Any]]) -> str:
    from featcache.text import fields, table

    lines = fields(facts)
    if not layers:
        return lines
    rows = [
        [one["name"], "" if one["index"] is None else str(one["index"]), _shape(one["shape"]), one["block"],
         "auto" if one["auto"] else ""]
        for one in layers
    ]  # fmt: skip
    return f"{lines}\n\n{table(['--tap', 'or', 'gives', 'block', '--tap auto'], rows)}"


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if side is None else str(side) for side in shape)
