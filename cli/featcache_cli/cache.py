"""featcache cache."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from featcache_cli.output import Json, emit

app = typer.Typer(
    no_args_is_help=True,
    help="What a cache holds. Example: featcache cache info photos.h5",
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Look into a cache."""


@app.command("info")
def info_command(cache: Annotated[Path, typer.Argument(help="A CACHE.h5.")], json: Json = False) -> None:
    """Show images, splits and taps of a cache.

    Example: featcache cache info photos.h5
    """
    from featcache.cache.reader import Cache
    from featcache.reports.table import printable, table

    found = Cache.open(cache)
    taps = [json_text.loads(tap.to_json()) | {"fingerprint": tap.fingerprint} for tap in found.taps.values()]
    facts = {
        "cache": str(cache),
        "root": str(found.root),
        "images": len(found.rows),
        "failed": [{"path": one.path, "status": one.status, "reason": one.reason} for one in found.failures],
        "classes": list(found.classes),
        "splits": dict(found.splits),
        "split_spec": asdict(found.split_spec),
        "taps": taps,
    }

    def text() -> str:
        splits = ", ".join(f"{count} {name}" for name, count in found.splits.items()) or "no labels"
        root = printable(str(found.root))
        head = f"{len(found.rows)} images of {root}, {len(found.failures)} without features; {splits}"
        rows = [
            [tap.name, tap.backbone.weights, tap.preprocess.size, tap.pooling, tap.fingerprint[:12]]
            for tap in found.taps.values()
        ]
        return "\n".join([head, table(["tap", "weights", "size", "pool", "fingerprint"], rows)])

    emit(json, facts, text)
