"""How results look in a notebook: a title, tables like those of pandas, and small pictures, as one piece of HTML.

Every value is escaped: class names and paths come from files, and may hold HTML. Nothing is imported before a notebook
shows something.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from featcache.errors import EnvironmentFault, FeatcacheError
from featcache.text import Table, number_columns, plain, printable, printable_cells

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")
MOST_ROWS = 20  # of a table; a line below it says how many more there are
MOST_PICTURES = 8
# pandas' class and border, so that a notebook's own style for data frames also fits these tables. An even number of
# pictures in a row keeps those of a pair side by side.
PAGE = """\
<div>
<p><b>{{ title }}</b></p>
{% for line in lines %}
<p>{{ line }}</p>
{% endfor %}
{% for table in tables %}
<table border="1" class="dataframe">
{% if table.header %}
<thead>
<tr>{% for cell, side in table.header %}<th style="text-align: {{ side }}">{{ cell }}</th>{% endfor %}</tr>
</thead>
{% endif %}
<tbody>
{% for row in table.rows %}
<tr>{% for cell, side in row %}<td style="text-align: {{ side }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% if table.num_hidden %}
<p>{{ table.num_hidden }} more rows</p>
{% endif %}
{% endfor %}
{% if pictures %}
<div style="display: grid; grid-template-columns: repeat(4, 112px); gap: 8px">
{% for picture in pictures %}
<figure style="margin: 0; overflow-wrap: anywhere; font-size: smaller">
<img src="data:image/jpeg;base64,{{ picture.data }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% for line in notes %}
<p>{{ line }}</p>
{% endfor %}
</div>"""


class Thumbnail(NamedTuple):
    """A small picture and what stands below it."""

    jpeg: bytes
    caption: str


def html(
    title: str,
    *tables: Table | Mapping[str, object],
    lines: Sequence[str] = (),
    pictures: Sequence[Thumbnail] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return a title, sentences, tables, pictures and more sentences as HTML, in this order, all escaped.

    tables: rows under a header, or facts by their names. Of long tables only the first rows are shown, and of many
    pictures only the first.
    """
    encoded = []
    for picture in pictures[:MOST_PICTURES]:
        encoded.append({"data": base64.b64encode(picture.jpeg).decode(), "caption": printable(picture.caption)})
    return _template().render(
        title=printable(title),
        lines=[printable(line) for line in lines],
        tables=[_drawn(table) for table in tables],
        pictures=encoded,
        notes=[printable(line) for line in notes],
    )


def never_raising(make: Callable[[T], str]) -> Callable[[T], str]:
    """Wrap a `_repr_html_` so that it says what is wrong where it would raise: a cell shows whatever its value is."""

    @wraps(make)
    def safe(value: T) -> str:
        try:
            return make(value)
        except FeatcacheError as error:
            return html(repr(value), notes=[str(error)])
        except Exception as error:  # such as a file that changes meanwhile
            return html(repr(value), notes=[f"{type(error).__name__}: {error}"])

    return safe


def import_pandas() -> Any:
    """Return pandas. Raises EnvironmentFault without it."""
    try:
        import pandas
    except ImportError as error:
        raise EnvironmentFault(f"A data frame needs pandas ({error}): pip install 'featcache[notebook]'") from error
    return pandas


def _drawn(table: Table | Mapping[str, object]) -> dict[str, Any]:
    """Return a table as the template takes it: each cell with the side on which it stands."""
    if isinstance(table, Mapping):
        table = Table([], [[name, plain(value)] for name, value in table.items()])
    cells = printable_cells(table.rows[:MOST_ROWS])
    num_columns = len(cells[0]) if cells else len(table.header)
    sides = ["right" if is_number else "left" for is_number in number_columns(num_columns, cells)]
    header = [printable(name) for name in table.header]
    return {
        "header": list(zip(header, sides, strict=False)),
        "rows": [list(zip(row, sides, strict=True)) for row in cells],
        "num_hidden": len(table.rows) - len(cells),
    }


@lru_cache(maxsize=1)
def _template() -> Template:
    # Here, because jinja2 takes a moment to import, and most programs show nothing in a notebook.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE)
