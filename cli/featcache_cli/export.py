"""featcache export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import ExportOptions
from featcache_cli.output import Allow, Force, Json, emit, score_document

if TYPE_CHECKING:
    from featcache.extras.export import Exported


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="MODEL.keras, or RUN@best.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="What to write: .keras, a folder, .tflite, .onnx or .xml (and .bin).")
    ],
    options: ExportOptions,
    force: Force = False,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Write a model for another runtime, once it has given the same probabilities there on 64 images.

    Example: featcache export tuned.keras -o tuned.onnx --assert "balanced_accuracy>=0.9"
    """
    from featcache.extras.export import export

    trust.allow(*(allow or ()))
    settings = vars(options) | {"gates": options.gates or ()}
    exported = export(model, out=out, force=force, **settings)
    emit(json, document(exported), lambda: text(exported))


def document(exported: Exported) -> dict[str, Any]:
    """Return the exported model as it stands in JSON."""
    return {
        "file": str(exported.path),
        "format": exported.format,
        "bytes": exported.bytes,
        "input": {"name": "image", "dtype": "uint8", "shape": list(exported.input)},
        "runtime": exported.runtime,
        "compared_on": exported.sample,
        "images": exported.images,
        "difference": exported.difference,
        "agreement": exported.agreement,
        "judged_on": exported.judged_on,
        "scores": {name: score_document(score) for name, score in exported.scores.items()},
        "model_scores": {name: score_document(score) for name, score in exported.model_scores.items()},
        "asserted": list(exported.gates),
    }


def text(exported: Exported) -> str:
    """Return the exported model as a person reads it."""
    from featcache.text import counted, interval, printable, table

    shape = ", ".join("any" if side is None else str(side) for side in exported.input)
    judged_on = f" of {exported.judged_on}" if exported.judged_on else ""
    lines = [
        f"Loaded again by {exported.runtime}: on {exported.images} of {printable(exported.sample)} "
        f"probabilities differ by {exported.difference:.1e} at most; same class on {exported.agreement:.1%}{judged_on}."
    ]
    if exported.scores:
        rows = []
        for name, score in exported.scores.items():
            rows.append([name, interval(*score), interval(*exported.model_scores[name])])
        images = counted(exported.judged_on, "image")
        lines.append(table([f"on {images}", f"{exported.format} [95 %]", "model [95 %]"], rows))
    lines += [f"Asserted and met: {gate}" for gate in exported.gates]
    lines.append(f"Takes uint8 RGB images ({shape}), gives probabilities; {exported.bytes / 1e6:.1f} MB")
    lines.append(f"File: {printable(str(exported.path))}")
    return "\n".join(lines)
