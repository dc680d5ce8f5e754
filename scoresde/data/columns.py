"""Tables of your own: the numeric columns of a .csv or .parquet file, and the classes in one of its columns.

A value that is missing is not filled in, and a column that holds no numbers is not left out: either would change the
data silently. Both are refused, with the place or the name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.data.images import needing
from scoresde.data.labels import number_classes
from scoresde.errors.kinds import ConfigError, DataError
from scoresde.errors.names import unknown
from scoresde.errors.values import check_path, check_text

if TYPE_CHECKING:
    from polars import DataFrame, Series

__all__ = ["FileTable", "table_from_file"]

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, eq=False, kw_only=True)
class FileTable:
    """The table of a file.

    Args:
        values: float64 (N, D), in the units of the file; ``values.float()`` is what a network takes, and
            ``Affine.standardise(values)`` makes the columns comparable.
        names: the D columns, in the order of the file.
        labels: int64 (N,), the place in ``classes``; None where no column was named for them.
        classes: the values of the labels' column, sorted: numbers by size, words by their letters.
    """

    values: Tensor
    names: tuple[str, ...]
    labels: Tensor | None
    classes: tuple[str, ...]


def table_from_file(path: str | os.PathLike[str], *, label_column: str | None = None) -> FileTable:
    """Return the table of a .csv file, whose first line names its columns, or of a .parquet file.

    Every column but that of the labels is a coordinate: integers, floats, or true and false as 1 and 0. Rows count from
    1, which in a .csv file is the one below the names.

    Args:
        path: the file; its ending may be in any case. A .csv file is text in UTF-8 with commas between its columns.
        label_column: the name of the column that holds the class of each row, as words or whole numbers.

    Raises:
        DataError: a file that is missing, unreadable or damaged; no rows or no columns of numbers; a missing, infinite
            or unreadable value, with its row and column; columns that hold no numbers, with their names; columns
            without a name.
        ConfigError: another ending, no such column (with the nearest), or polars is missing.
        DTypeError, DomainError: no path.
    """
    file = check_path(path)
    label_column = None if label_column is None else check_text(label_column, "label_column")
    frame = _read(file)
    _check_names(file, frame)
    if label_column is not None and label_column not in frame.columns:
        raise unknown(f"column of {file}", label_column, frame.columns, parameter="label_column")
    if frame.height == 0:
        raise DataError(f"{file} holds no rows", cure="a row of numbers stands below the names of the columns")
    labels, classes = (None, ()) if label_column is None else _read_classes(file, frame[label_column])
    columns = [column for column in frame.get_columns() if column.name != label_column]
    return FileTable(
        values=torch.from_numpy(_read_numbers(file, columns)),
        names=tuple(column.name for column in columns),
        labels=labels,
        classes=classes,
    )


def _read(file: Path) -> DataFrame:
    ending = file.suffix.lower()
    if ending not in SUFFIXES:
        raise unknown("ending of a table", file.suffix, SUFFIXES, parameter="path")
    with needing("tables from files", "polars"):
        import polars
    try:
        file.open("rb").close()  # an OSError that says what is wrong, where it cannot be opened
        if ending == ".parquet":
            return polars.read_parquet(file, glob=False)
        # Every row has a say in a column's type.
        frame = polars.read_csv(file, glob=False, infer_schema_length=None).rename(str.strip)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}", cure="check the path and its permissions"
        ) from error
    except polars.exceptions.PolarsError as error:
        said = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{file} is damaged or no {ending} file ({said})", cure="write it again, as polars or pandas do"
        ) from error
    # Empty lines at the end are no rows, where a row has commas.
    while frame.width > 1 and frame.height and all(value is None for value in frame.row(-1)):
        frame = frame.head(-1)
    return frame


def _check_names(file: Path, frame: DataFrame) -> None:
    """Raise DataError where the names of the columns show that the file means something else."""
    if any(not name.strip() or name.startswith("__index_level_") for name in frame.columns):
        raise DataError(
            f"{file} has a column without a name, which seems to count the rows", cure="write it with index=False"
        )
    if file.suffix.lower() == ".csv" and all(_is_number(name) for name in frame.columns):
        raise DataError(f"the first line of {file} holds numbers", cure="write the names of the columns there")
    if frame.width == 1 and (marks := {";", "\t"} & set(frame.columns[0])):
        raise DataError(f"the columns of {file} are separated by {marks.pop()!r}", cure="write commas between them")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_numbers(file: Path, columns: list[Series]) -> NDArray[Any]:
    """Return columns as float64 (N, D)."""
    import polars

    if not columns:
        raise DataError(f"{file} has no column of numbers", cure="add one beside the labels")
    others, values = [], np.empty((len(columns[0]), len(columns)))
    for place, column in enumerate(columns):
        if column.dtype == polars.String:
            # Spaces behind the commas, or a word among numbers.
            numbers = column.str.strip_chars().cast(polars.Float64, strict=False)
        elif column.dtype.is_numeric() or column.dtype in (polars.Boolean, polars.Null):
            numbers = column.cast(polars.Float64)
        else:
            numbers = polars.repeat(None, len(column), dtype=polars.Float64, eager=True)
        if numbers.null_count() == len(column) > column.null_count():
            others.append(column.name)
        values[:, place] = numbers.to_numpy()
    if others:
        raise DataError(
            f"{file} has columns that hold no numbers: {', '.join(map(repr, others))}",
            parameter="label_column",
            allowed=tuple(others),
            cure="take them out, write them as numbers, or name one with label_column= where it holds the labels",
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, place = bad[0].tolist()
        found = columns[place][row]
        what = "no value" if found is None else f"{found!r}"
        raise DataError(
            f"{file} holds {what} in row {row + 1} of column {columns[place].name!r} (such places: {len(bad)})",
            got=found,
            allowed="finite numbers",
            cure="fill them in, or take their rows out",
        )
    return values


def _read_classes(file: Path, column: Series) -> tuple[Tensor, tuple[str, ...]]:
    """Return the place of each row's class among the classes, and these."""
    import polars

    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise DataError(
            f"{file} holds no label in row {row + 1} of column {column.name!r} (such rows: {column.null_count()})",
            allowed="a word or a whole number",
            cure="fill them in, or take the rows out",
        )
    if column.dtype in (polars.String, polars.Categorical, polars.Enum):
        column = column.cast(polars.String).str.strip_chars()
    if not (column.dtype.is_integer() or column.dtype in (polars.String, polars.Boolean)):
        raise ConfigError(
            f"column {column.name!r} of {file} holds {column.dtype}, which are no labels",
            parameter="label_column",
            got=column.name,
            allowed="words or whole numbers",
            cure="name a column of words or whole numbers",
        )
    return number_classes(column.to_list())
