"""Tables for the terminal and as Markdown, and the measured numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

Row = dict[str, str | int | float | None]
"""Values by column, the same columns in every row of a table."""


@dataclass(frozen=True)
class Table:
    """A table, its name in files, its title, and notes that say what the columns mean."""

    name: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def text(self, style: str = "simple") -> str:
        """For the terminal, or as Markdown of ``style`` "github".

        Values that are None are shown as a dash, numbers with three digits.
        """
        rows = [[_show(value) for value in row.values()] for row in self.rows]
        aligned = ["left" if isinstance(v, str) else "right" for v in self.rows[0].values()]
        grid = tabulate(rows, [*self.rows[0]], style, disable_numparse=True, colalign=aligned)
        return "\n".join([f"### {self.title}", "", grid, "", *(f"- {n}" for n in self.notes), ""])


def _show(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def write_report(
    folder: Path, name: str, tables: Sequence[Table], machine: Mapping[str, Any]
) -> None:
    """Print the machine and all tables; write them as ``<name>.md`` and ``<name>.json``."""
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    print(about, *(table.text() for table in tables), sep="\n\n")
    sections = (table.text("github") for table in tables)
    (folder / f"{name}.md").write_text("\n\n".join([about, *sections]))
    content = {"machine": machine, **{table.name: table.rows for table in tables}}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"Tables and numbers are in {folder}")
