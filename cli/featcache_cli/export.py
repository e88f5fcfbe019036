"""featcache export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import ExportOptions
from featcache_cli.output import Allow, Force, Json, emit

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
    done = export(model, out=out, force=force, **vars(options) | {"gates": options.gates or ()})
    emit(json, document(done), lambda: text(done))


def document(done: Exported) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "file": str(done.path),
        "format": done.format,
        "bytes": done.bytes,
        "input": {"name": "image", "dtype": "uint8", "shape": list(done.input)},
        "runtime": done.runtime,
        "compared_on": done.sample,
        "images": done.images,
        "difference": done.difference,
        "agreement": done.agreement,
        "judged_on": done.judged_on,
        "scores": {name: _score(one) for name, one in done.scores.items()},
        "model_scores": {name: _score(one) for name, one in done.model_scores.items()},
        "asserted": list(done.gates),
    }


def text(done: Exported) -> str:
    """Return the result as a person reads it."""
    from featcache.text import counted, interval, printable, table

    shape = ", ".join("any" if one is None else str(one) for one in done.input)
    lines = [
        f"Loaded again by {done.runtime}: on {done.images} of {printable(done.sample)} probabilities differ by "
        f"{done.difference:.1e} at most; same class on {done.agreement:.1%}"
        + (f" of {done.judged_on}." if done.judged_on else "."),
    ]
    if done.scores:
        rows = [[name, interval(*one), interval(*done.model_scores[name])] for name, one in done.scores.items()]
        lines.append(table([f"on {counted(done.judged_on, 'image')}", f"{done.format} [95 %]", "model [95 %]"], rows))
    lines += [f"Asserted and met: {one}" for one in done.gates]
    lines.append(f"Takes uint8 RGB images ({shape}), gives probabilities; {done.bytes / 1e6:.1f} MB")
    lines.append(f"File: {printable(str(done.path))}")
    return "\n".join(lines)


def _score(one: Any) -> dict[str, Any]:
    return {"score": one.value, "interval": [one.low, one.high]}
