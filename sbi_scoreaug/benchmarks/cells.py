"""Long tables, cell by cell: each cell is written when it is finished, and kept.

A *cell* is a dictionary of settings; a function turns it into a dictionary of results.
`run_cells` runs those that the CSV file does not hold yet.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import shlex
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from sbi_scoreaug import __version__
from sbi_scoreaug.errors import InvalidInputError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the finished rows of `path`, with numbers as numbers."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: _parse(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _parse(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run_cells(
    cells: list[Row],
    function: Callable[..., Row],
    path: Path,
    jobs: int = 1,
    show_progress_bar: bool = True,
) -> list[Row]:
    """Return the rows of all `cells`, computing those that `path` does not hold.

    Args:
        cells: Settings; passed to `function` as keywords.
        function: Returns the results of one cell. Must be importable by workers.
        path: CSV file; rows are appended as they come.
        jobs: Processes, each with one thread.
        show_progress_bar: Whether to show a bar over cells.
    """
    if not cells:
        return []
    names = list(cells[0])
    done = {tuple(row[n] for n in names) for row in read_rows(path)}
    missing = [cell for cell in cells if tuple(cell[n] for n in names) not in done]
    _require_folder(path.parent)
    results: Any = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_run_one)(function, cell) for cell in missing
    )
    bar: Any = tqdm(results, total=len(missing), disable=not show_progress_bar)
    for row in bar:
        bar.set_postfix_str(" ".join(str(row[n]) for n in names))
        _append(row, path)
    wanted = {tuple(cell[n] for n in names) for cell in cells}
    return [row for row in read_rows(path) if tuple(row[n] for n in names) in wanted]


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"out: expected a folder that can be written to, got {folder} ({error}). "
            "Name another with --out."
        ) from error


def _append(row: Row, path: Path) -> None:
    """Write a row, or nothing of it: half a row could not be read again."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(row))
    size = path.stat().st_size if path.exists() else 0
    if not size:
        writer.writeheader()
    writer.writerow(row)
    try:
        with path.open("ab") as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        with path.open("ab") as file:
            file.truncate(size)
        raise OSError(
            f"{path} could not be written ({error}). {len(read_rows(path))} cells are "
            "kept there: make room and give the same command again."
        ) from error


def _run_one(function: Callable[..., Row], cell: Row) -> Row:
    torch.set_num_threads(1)
    return {**cell, **function(**cell)}


def benchmark_parser(
    name: str, about: str | None, quick: str
) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks take; `quick` says how long that is."""
    parser = argparse.ArgumentParser(
        f"python -m sbi_scoreaug.benchmarks {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, default=Path(name))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--report", action="store_true", help="of the cells finished so far, no more"
    )
    return parser


def provenance(benchmark: str, argv: Sequence[str] = ()) -> str:
    """Return a line that says when, with what and how a table was made."""
    command = shlex.join(["python", "-m", "sbi_scoreaug.benchmarks", benchmark, *argv])
    versions = [f"sbi_scoreaug {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("sbi", "torch", "numpy")]
    return f"{date.today().isoformat()}; {', '.join(versions)}; `{command}`"
