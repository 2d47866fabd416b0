"""Tables for the terminal and files, plots, and the measured numbers as JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import InputError
from .machine import machine_text

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table with a title; cells that are None are shown as a dash, numbers with three digits."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """For the terminal."""
        return "\n".join([self.title, self._grid("simple"), *self.notes, ""])

    def markdown(self) -> str:
        """A section with a heading."""
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"### {self.title}", "", self._grid("github"), "", *notes, ""])

    def write_csv(self, path: Path) -> None:
        """All digits, and nothing in the place of None."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.headers)
            writer.writerows(self.rows)

    def _grid(self, style: str) -> str:
        rows = [[_show(cell) for cell in row] for row in self.rows]
        alignment = ["left" if isinstance(cell, str) else "right" for cell in self.rows[0]]
        return tabulate(
            rows, self.headers, tablefmt=style, disable_numparse=True, colalign=alignment
        )


def _show(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def prepare_folder(folder: Path) -> None:
    """Make the output folder before any long work; InputError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output {str(folder)!r} cannot be written to: {error}") from error


def write_report(
    folder: Path, name: str, tables: Sequence[Table], machine: Mapping[str, Any], data: Any
) -> None:
    """Write ``<name>.md`` with the tables and ``<name>.json`` with the machine and the data."""
    text = "\n".join(table.markdown() for table in tables)
    (folder / f"{name}.md").write_text(f"{machine_text(machine)}\n\n{text}")
    content = {"machine": machine, **data}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
