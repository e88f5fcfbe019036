"""featcache recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import RecipeOptions
from featcache_cli import advise as advise_command
from featcache_cli import extract as extract_command
from featcache_cli import finetune as finetune_command
from featcache_cli.complete import RECIPES
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
        done = run_recipe(
            name,
            images,
            out,
            force=force,
            progress=draw,
            **vars(options) | {"settings": parse_settings(options.settings or ())},
        )
    if isinstance(done, Named):
        emit(json, named_document(done), lambda: named_text(done))
        return
    extract_command.name_failures(done.extracted)
    emit(json, document(done), lambda: text(done))


def listed() -> dict[str, Any]:
    """Return all recipes as they stand in JSON."""
    from featcache.extras.recipes import RECIPES

    return {"recipes": [asdict(one) | {"weights": needs(one)} for one in RECIPES.values()]}


def list_text() -> str:
    """Return all recipes as a person reads them."""
    from featcache.extras.recipes import RECIPES
    from featcache.text import wrapped

    lines = []
    for one in RECIPES.values():
        lines += [one.name, f"  does    {one.does}", f"  images  {one.data}"]
        lines += [f"  weights {file} ({said})" for file, said in needs(one).items()]
        lines += [f"  command {usage(one)}", ""]
    lines.append("Each with --small tries its path in seconds, without weights; its figures mean nothing.")
    return "\n".join(wrapped(line, indent=10 if line.startswith(" ") else 0) for line in lines)


def usage(recipe: Training | Naming) -> str:
    """Return the command of a recipe."""
    model = " -m model.hdf5:mode=unit" if recipe.name == "own-model" else ""
    images = " [IMAGES]" if recipe.name == "cifar" else " IMAGES"
    return f"featcache recipe {recipe.name}{images}{model} -o {recipe.name}"


def needs(recipe: Training | Naming) -> dict[str, str]:
    """Return the files of weights that a recipe needs, and whether each is there."""
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
    from featcache.text import interval, printable, table

    rows = [[line.name, interval(line.val, *line.interval), line.epochs, f"{line.seconds:.1f}"] for line in done.table]
    advice = [] if done.advice is None else ["", "Which case it is:", advise_command.text(done.advice)]
    lines = [
        *_warning(done),
        f"{done.recipe.name}: {done.recipe.does}.",
        f"{len(done.images.rows)} images, {len(done.images.classes)} classes: "
        + ", ".join(f"{count} {name}" for name, count in done.images.splits.items()),
        extract_command.counts(done.extracted),
        *([done.recipe.note] if done.recipe.note else []),
        "",
        "Step by step:",
        *map(printable, done.commands),
        *advice,
        "",
        "Fine-tuning from the head:",
        finetune_command.text(done.tuned),
        "",
        table(["", f"val {done.run.settings.metric} [95 %]", "epochs", "s"], rows),
        "Seconds of the head count extraction, those of fine-tuning what was computed once before it.",
        "These images also chose the epoch: expect a little less on new ones.",
        *_warning(done),
        f"Model: {printable(str(done.tuned.path))}; all in {done.seconds:.0f} s",
        f"Next: featcache predict {in_shell(done.tuned.path)} IMAGES",
    ]
    return "\n".join(lines)


def named_document(done: Named) -> dict[str, Any]:
    """Return the named photos as they stand in JSON."""
    return {
        "recipe": done.recipe.name,
        "small": done.small,
        "predictions": [
            {"path": one.path, "top": [list(pair) for pair in one.top], "status": one.status, "reason": one.reason}
            for one in done.predictions
        ],
        "seconds": round(done.seconds, 1),
    }


def named_text(done: Named) -> str:
    """Return the named photos as a person reads them."""
    from featcache.text import table

    rows = [
        [one.path, ", ".join(f"{name} {share:.3f}" for name, share in one.top) or f"{one.status}: {one.reason}"]
        for one in done.predictions
    ]
    header = ["image", f"the {done.recipe.top} most probable of ImageNet's classes"]
    return "\n".join([*_warning(done), table(header, rows), *_warning(done)])


def _warning(done: Trained | Named) -> list[str]:
    from featcache.extras.recipes import MEANINGLESS

    return [f"!! {MEANINGLESS} !!"] if done.small else []
