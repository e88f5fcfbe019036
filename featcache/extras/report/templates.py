"""Render pages from templates that escape every value. A page runs only the script whose digest its policy names."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

NO_FILTERS: Mapping[str, Callable[..., Any]] = {}
MARKED_BYTES = 4096  # at the beginning of a page, which hold its mark


def render_page(
    template: str,
    *,
    script: str,
    styles: tuple[str, ...],
    context: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] = NO_FILTERS,
) -> str:
    """Render a template of the folder `page`, with its script and styles inside."""
    from markupsafe import Markup

    # The content security policy allows the script by the digest of its bytes, so they must reach the page unescaped.
    code = page_text(script)
    environment = templates()
    environment.filters |= filters
    return environment.get_template(template).render(
        **context,
        script=Markup(code),
        style=Markup("".join(map(page_text, styles))),
        digest=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        svg=Markup,  # not escaped: our own plots, which escape their text
    )


def has_mark(path: Path, *marks: bytes) -> bool:
    """Return whether a file is a page that begins with one of these marks, by which we know our own."""
    with path.open("rb") as file:
        beginning = file.read(MARKED_BYTES)
    return any(mark in beginning for mark in marks)


def templates() -> Environment:
    """Return the jinja2.Environment of the folder `page`, which escapes values and raises for undefined ones."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("featcache.extras.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_text(name: str) -> str:
    """Return a file of the folder `page`."""
    return resources("featcache.extras.report").joinpath("page", name).read_text("utf-8")
