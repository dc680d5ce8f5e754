"""Tables of one's own: columns, classes, and what is refused with its place or its name."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import polars
import pytest
import torch

from scoresde.data import table_from_file
from scoresde.errors import ConfigError, DataError, DomainError, DTypeError, ScoreSDEError

IRIS = "width,species,length\n1.5,virginica,3\n2.5,setosa,4\n0.25,virginica,5\n"


def write(file: Path, text: str | bytes) -> Path:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".parquet", ".Parquet"])
def test_columns_come_in_the_order_of_the_file_and_words_become_classes(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"iris{ending}"
    if ending.lower() == ".csv":
        write(file, IRIS)
    else:
        polars.read_csv(IRIS.encode()).write_parquet(file)
    table = table_from_file(str(file), label_column="species")
    assert table.names == ("width", "length")
    assert table.values.dtype == torch.float64
    assert table.values.tolist() == [[1.5, 3.0], [2.5, 4.0], [0.25, 5.0]]
    assert table.classes == ("setosa", "virginica")
    assert table.labels is not None
    assert table.labels.dtype == torch.int64
    assert table.labels.tolist() == [1, 0, 1]
    # A column of numbers is a coordinate, or the labels, as asked.
    lengths = table_from_file(file, label_column="species").values[:, 1]
    with pytest.raises(DataError, match="hold no numbers: 'species'"):
        table_from_file(file, label_column="length")
    assert lengths.tolist() == [3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("column", "classes", "labels"),
    [
        ("10\n2\n10\n-1", ("-1", "2", "10"), [2, 1, 2, 0]),
        ("true\nfalse\ntrue\ntrue", ("False", "True"), [1, 0, 1, 1]),
        ("x\n X\nx \nNA", ("NA", "X", "x"), [2, 1, 2, 0]),
    ],
)
def test_classes_are_sorted(tmp_path: Path, column: str, classes: tuple[str, ...], labels: list[int]) -> None:
    rows = "\n".join(f"{k},{value}" for k, value in enumerate(column.split("\n")))
    table = table_from_file(write(tmp_path / "x.csv", f"a, kind\n{rows}\n"), label_column="kind")
    assert table.labels is not None
    assert (table.classes, table.labels.tolist(), table.names) == (classes, labels, ("a",))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a, b\r\n1, 2\r\n3, 4.5\r\n", [[1, 2], [3, 4.5]]),
        ("\ufeffa,b\n1,true\n-2e3,false\n\n\n", [[1, 1], [-2000, 0]]),
        ('"a","b"\n"1","2"', [[1, 2]]),
        ("a\n1\n2\n", [[1], [2]]),
        (f"a,b\n{2**53 - 1},1\n", [[2**53 - 1, 1]]),
        ("a,b\n" + "1,2\n" * 2000 + "1,2.5\n", [[1, 2]] * 2000 + [[1, 2.5]]),
    ],
)
def test_numbers_are_read_as_they_are_written(tmp_path: Path, text: str, values: list[list[float]]) -> None:
    table = table_from_file(write(tmp_path / "x.csv", text))
    assert table.values.tolist() == values
    assert (table.labels, table.classes) == (None, ())


def test_types_of_a_parquet_file(tmp_path: Path) -> None:
    frame = polars.DataFrame({"byte": [1, 255], "single": [0.1, 0.2], "exact": ["1.25", "3.50"], "kind": ["b", "a"]})
    frame = frame.with_columns(
        polars.col("byte").cast(polars.UInt8),
        polars.col("single").cast(polars.Float32),
        polars.col("exact").cast(polars.Decimal(10, 2)),
        polars.col("kind").cast(polars.Categorical),
    )
    frame.write_parquet(tmp_path / "x.parquet")
    table = table_from_file(tmp_path / "x.parquet", label_column="kind")
    expected = torch.tensor([[1.0, 0.1, 1.25], [255.0, 0.2, 3.5]])
    assert torch.equal(table.values.float(), expected)
    assert (table.classes, table.labels.tolist() if table.labels is not None else None) == (("a", "b"), [1, 0])
    others = {"day": [datetime.date(2020, 1, 1)] * 2, "pair": [[1, 2]] * 2}
    frame.with_columns(**{name: polars.Series(value) for name, value in others.items()}).write_parquet(
        tmp_path / "y.parquet"
    )
    with pytest.raises(DataError, match="has columns that hold no numbers: 'day', 'pair'; take them out") as caught:
        table_from_file(tmp_path / "y.parquet", label_column="kind")
    assert (caught.value.parameter, caught.value.allowed) == ("label_column", ("day", "pair"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n3,\n5,\n",
            r"x.csv holds no value in row 2 of column 'b' \(such places: 2\); fill them in, or take",
        ),
        ("a,b\n1,2\n\n3,4\n", r"holds no value in row 2 of column 'a' \(such places: 2\)"),
        ("a,b\n1\n2,3\n", r"holds no value in row 1 of column 'b' \(such places: 1\)"),
        ("a,b\n1,NaN\n3,-inf\n", r"holds nan in row 1 of column 'b' \(such places: 2\)"),
        ("a,b\n1,2\n3,NA\n", r"holds 'NA' in row 2 of column 'b' \(such places: 1\)"),
        ("a,b\n1,\n2,\n", r"holds no value in row 1 of column 'b' \(such places: 2\)"),
        ("a,b,c\n1,x,2020-01-01\n", "hold no numbers: 'b', 'c'; take them out, write them as numbers, or name one"),
        ("1.5,2\n3,4\n", r"the first line of .*x.csv holds numbers; write the names of the columns there"),
        (",a\n0,2\n1,3\n", "a column without a name, which seems to count the rows; write it with index=False"),
        ("a;b\n1;2\n", "are separated by ';'; write commas"),
        ("a\tb\n1\t2\n", r"are separated by '\\t'; write commas"),
        ("a,b\n", "holds no rows; a row of numbers stands below"),
        ("", r"is damaged or no .csv file \(empty CSV\)"),
        ("a,b\n1,2,3\n", r"is damaged or no .csv file \(found more fields"),
        (b"a,b\n1,\xe9\n", r"is damaged or no .csv file \(invalid utf-8"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table_from_file(write(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("a,kind\n1,x\n2,\n", DataError, r"holds no label in row 2 of column 'kind' \(such rows: 1\)"),
        ("a,kind\n1,0.5\n2,1\n", ConfigError, "column 'kind' of .* holds Float64, which are no labels; name a column"),
        ("a,kinds\n1,x\n", ConfigError, "unknown column of .*x.csv 'kind'; did you mean 'kinds'"),
        ("kind\nx\n", DataError, "has no column of numbers; add one beside the labels"),
    ],
)
def test_what_is_no_column_of_labels_is_refused(
    tmp_path: Path, text: str, kind: type[ScoreSDEError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        table_from_file(write(tmp_path / "x.csv", text), label_column="kind")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.csv cannot be read: No such file or directory; check the path"):
        table_from_file(tmp_path / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder.csv cannot be read: Is a directory"):
        table_from_file(tmp_path / "folder.csv")
    write(tmp_path / "x1.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x\*.csv cannot be read: No such file"):
        table_from_file(tmp_path / "x*.csv")
    with pytest.raises(ConfigError, match=r"unknown ending of a table '.xlsx'; choices: .csv, .parquet"):
        table_from_file(tmp_path / "x.xlsx")
    with pytest.raises(DataError, match=r"is damaged or no .parquet file"):
        table_from_file(write(tmp_path / "x.parquet", "a,b\n1,2\n"))
    polars.DataFrame({"a": range(500)}).write_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    for length in (0, 100, len(whole) - 1):
        with pytest.raises(DataError, match=r"x.parquet is damaged or no .parquet file"):
            table_from_file(write(tmp_path / "x.parquet", whole[:length]))
    with pytest.raises(DTypeError, match="path must be a string"):
        table_from_file(3)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="path is empty"):
        table_from_file("")


def test_a_table_without_polars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(
        ConfigError, match=r'tables from files need polars; in the repository run pip install "\.\[data\]"'
    ):
        table_from_file(write(tmp_path / "x.csv", IRIS))
