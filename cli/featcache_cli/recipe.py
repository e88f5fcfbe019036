"""featcache recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import RecipeOptions
from featcache.text import counts_text
from featcache_cli import advise as advise_command
from featcache_cli import extract as extract_command
from featcache_cli import finetune as finetune_command
from featcache_cli.complete import RECIPES
from featcache_cli.options import in_flags
from featcache_cli.output import Force, Json, Quiet, emit, in_shell, progress, without_download

if TYPE_CHECKING:
    from featcache.extras.recipes import Named, Naming, Trained, Training

LIST = "list"


def command(
    *,
    name: Annotated[
        str,
        typer.Argument(
            help="list, or flowers, hotdog, flower-photos, cifar, imagenet, own-model.",
            metavar="NAME",
            autocompletion=RECIPES,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders, archive, manifest or arrays; for imagenet any photos."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for everything that is made. [default: NAME]")
    ] = None,
    force: Force = False,
    options: RecipeOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the set-up of a tutorial: extract, exactly its head, fine-tune, table. `recipe list` says what each needs.

    Example: featcache recipe flower-photos photos/ -o flower-photos
    """
    from featcache.extras.recipes import Named, parse_settings, run_recipe

    if name == LIST:
        emit(json, listed(), list_text)
        return
    weights = "predict.weights" if name == "imagenet" else "extract.weights"
    with progress(quiet) as draw, without_download(f"use --set {weights}=none (random), or try it with --small"):
        settings = vars(options) | {"settings": parse_settings(options.settings or ())}
        done = run_recipe(name, images, out, force=force, progress=draw, **settings)
    if isinstance(done, Named):
        emit(json, named_document(done), lambda: named_text(done))
        return
    extract_command.name_failures(done.extracted)
    emit(json, document(done), lambda: text(done))


def listed() -> dict[str, Any]:
    """Return all recipes as they stand in JSON."""
    from featcache.extras.recipes import RECIPES

    return {"recipes": [asdict(recipe) | {"weights": needs(recipe)} for recipe in RECIPES.values()]}


def list_text() -> str:
    """Return all recipes as a person reads them."""
    from featcache.extras.recipes import RECIPES
    from featcache.text import wrapped

    lines = []
    for recipe in RECIPES.values():
        lines += [recipe.name, f"  does    {recipe.does}", f"  images  {recipe.data}"]
        lines += [f"  weights {file} ({state})" for file, state in needs(recipe).items()]
        lines += [f"  command {usage(recipe)}", ""]
    lines.append("Each with --small tries its path in seconds, without weights; its figures mean nothing.")
    return "\n".join(wrapped(line, indent=10 if line.startswith(" ") else 0) for line in lines)


def usage(recipe: Training | Naming) -> str:
    """Return the command of a recipe."""
    model = " -m model.hdf5:mode=unit" if recipe.name == "own-model" else ""
    images = " [IMAGES]" if recipe.name == "cifar" else " IMAGES"
    return f"featcache recipe {recipe.name}{images}{model} -o {recipe.name}"


def needs(recipe: Training | Naming) -> dict[str, str]:
    """Return {file of weights: state} for the files that a recipe needs."""
    from featcache.extras.recipes import weights_of

    return {str(file): "there" if file.exists() else "not there yet" for file in weights_of(recipe)}


def document(done: Trained) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "recipe": done.recipe.name,
        "small": done.small,
        "folder": str(done.folder),
        "classes": len(done.images.classes),
        "splits": dict(done.images.splits),
        "extract": extract_command.document(done.extracted),
        "head": {"head": done.head.trial.head, "setting": dict(done.head.trial.params)},
        "finetune": finetune_command.document(done.tuned),
        "table": [asdict(line) for line in done.table],
        "commands": list(done.commands),
        "advice": None if done.advice is None else advise_command.document(done.advice),
        "seconds": round(done.seconds, 1),
    }


def text(done: Trained) -> str:
    """Return the result as a person reads it."""
    from featcache.text import counted, interval, printable, table

    images, classes = counted(len(done.images.rows), "image"), counted(len(done.images.classes), "class")
    lines = [
        *_warning(done),
        f"{done.recipe.name}: {done.recipe.does}.",
        f"{images}, {classes}: {counts_text(done.images.splits)}",
        extract_command.counts(done.extracted),
    ]
    if done.recipe.note:
        lines.append(done.recipe.note)
    lines += ["", "Step by step:", *map(printable, done.commands)]
    if done.advice is not None:
        lines += ["", "Which case it is:", advise_command.text(done.advice)]
    lines += ["", "Fine-tuning from the head:", finetune_command.text(done.tuned)]

    rows = []
    for line in done.table:
        rows.append([line.name, interval(line.val, *line.interval), line.epochs, f"{line.seconds:.1f}"])
    score_header = f"{done.tuned.val_header} {done.run.settings.metric} [95 %]"
    lines += [
        "",
        table(["", score_header, "epochs", "s"], rows),
        "The head's seconds include extraction; the seconds of fine-tuning include what was computed once before it.",
        "These images also chose the epoch: expect a little less on new ones.",
        *_warning(done),
        f"Model: {printable(str(done.tuned.path))}; all in {done.seconds:.0f} s",
        f"Next: featcache predict {in_shell(done.tuned.path)} IMAGES",
    ]
    return "\n".join(lines)


def named_document(done: Named) -> dict[str, Any]:
    """Return the named photos as they stand in JSON."""
    predictions = []
    for prediction in done.predictions:
        top = list(map(list, prediction.top))
        status, reason = prediction.status, in_flags(prediction.reason)
        predictions.append({"path": prediction.path, "top": top, "status": status, "reason": reason})
    return {
        "recipe": done.recipe.name,
        "small": done.small,
        "predictions": predictions,
        "seconds": round(done.seconds, 1),
    }


def named_text(done: Named) -> str:
    """Return the named photos as a person reads them."""
    from featcache.text import table

    rows = []
    for prediction in done.predictions:
        names = ", ".join(f"{name} {probability:.3f}" for name, probability in prediction.top)
        rows.append([prediction.path, names or f"{prediction.status}: {in_flags(prediction.reason)}"])
    header = ["image", f"the {done.recipe.top} most probable of ImageNet's classes"]
    return "\n".join([*_warning(done), table(header, rows), *_warning(done)])


def _warning(done: Trained | Named) -> list[str]:
    from featcache.extras.recipes import MEANINGLESS

    return [f"!! {in_flags(MEANINGLESS)} !!"] if done.small else []
