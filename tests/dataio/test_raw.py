from __future__ import annotations

import bz2
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tesserec.dataio import raw
from tesserec.dataio.columns import BadValue
from tesserec.dataio.raw import RawBatch, read_raw
from tesserec.dataio.schema import Format, RawType, SchemaError

COLUMNS: Mapping[str, RawType] = {"y": "float", "c": "string", "x": "float"}
CSV = "y,x,c,extra\n1,0.5,00a1,z\n0,,b,z\n1,-2,,z\n"
ROWS: list[dict[str, Any]] = [
    {"y": 1.0, "c": "00a1", "x": 0.5},
    {"y": 0.0, "c": "b", "x": None},
    {"y": 1.0, "c": None, "x": -2.0},
]


def rows_of(file: Path, columns: Mapping[str, RawType] = COLUMNS, text: Format | None = None) -> list[Any]:
    return [row for part in read_raw([file], columns, text) for row in part.batch.to_pylist()]


def problem(file: Path, columns: Mapping[str, RawType] = COLUMNS, text: Format | None = None) -> str:
    with pytest.raises(SchemaError) as caught:
        rows_of(file, columns, text)
    return str(caught.value)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row | {"extra": "z"} for row in ROWS])
    pq.write_table(table, tmp_path / "a.parquet")
    for name, opened in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        with opened(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    put(tmp_path / "a.csv", CSV)
    put(tmp_path / "a.tsv", CSV.replace(",", "\t").replace("\n", "\r\n"))
    put(tmp_path / "bom.csv", "\ufeff" + CSV)
    put(tmp_path / "quoted.csv", '"y","x","c","extra"\n"1",0.5,"00a1","z,z"\n0,,b,z\n1,-2,"",z\n')
    put(tmp_path / "a.csv.gz", gzip.compress(CSV.encode()))
    put(tmp_path / "a.csv.bz2", bz2.compress(CSV.encode()))
    with pa.CompressedOutputStream(str(tmp_path / "a.csv.zst"), "zstd") as stream:
        stream.write(CSV.encode())
    for file in sorted(tmp_path.iterdir()):
        assert rows_of(file) == ROWS, file.name


def test_a_file_without_header_takes_the_names_of_the_schema(tmp_path: Path) -> None:
    body = CSV.split("\n", 1)[1]
    text = Format(columns=("y", "x", "c", "extra"))
    assert rows_of(put(tmp_path / "a.txt", body), text=text) == ROWS
    assert rows_of(put(tmp_path / "b.txt", CSV), text=text) == ROWS


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", "0.5,00a1,z\n")
    text = Format(columns=("y", "x", "c", "extra"))
    parts = list(read_raw([file], COLUMNS, text, optional={"y"}))
    assert parts[0].batch.to_pylist() == [{"c": "00a1", "x": 0.5}]
    with_header = put(tmp_path / "b.csv", "x,c\n0.5,00a1\n")
    assert next(read_raw([with_header], COLUMNS, optional={"y"})).batch.num_columns == 2


def test_files_follow_each_other_and_know_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 64)
    lines = [f"{i % 2},{i},t{i}" for i in range(50)]
    files = [put(tmp_path / name, "y,x,c\n" + "\n".join(lines)) for name in ("a.csv", "b.csv")]
    parts: Sequence[RawBatch] = list(read_raw(files, COLUMNS))
    assert len(parts) > 4
    assert sum(part.batch.num_rows for part in parts) == 100
    for part in parts:
        assert part.batch["x"][0].as_py() == part.first_row - 2
    last = parts[-1]
    line = last.first_row + 1
    with (
        pytest.raises(SchemaError, match=rf"b.csv, line {line}, column 'x': got 3, wanted 4"),
        last.located(),
    ):
        raise BadValue("x", 1, 3, "4")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1,0.5,a\n0,fast,b\n", "line 3, column 'x': got 'fast', wanted a number"),
        ("1,0.5,a\n0,0.5\n", "line 3: 2 fields, wanted 3"),
        ("1,0.5,a\n0,0.5,b,9\n", "line 3: 4 fields, wanted 3"),
        (b"1,0.5,a\n0,0.5,\xff\xfe\n", "line 3, column 'c': got invalid UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, body: str | bytes, words: str) -> None:
    body = body.encode() if isinstance(body, str) else body
    file = put(tmp_path / "a.csv", b"y,x,c\n" + body)
    got = problem(file)
    assert str(file) in got and words in got


def test_a_missing_column_is_named_with_its_nearest(tmp_path: Path) -> None:
    assert "no column 'c'; did you mean 'cc'? (columns: y, x, cc)" in problem(
        put(tmp_path / "a.csv", "y,x,cc\n")
    )
    pq.write_table(pa.table({"y": [1.0], "xx": [2.0]}), tmp_path / "a.parquet")
    assert "no column 'c'" in problem(tmp_path / "a.parquet")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "a.csv")
    assert "empty" in problem(put(tmp_path / "b.csv", ""))
    assert "line 1: invalid UTF-8" in problem(put(tmp_path / "c.csv", b"\xff\xfe,x\n"))
    assert "as Parquet" in problem(put(tmp_path / "d.parquet", "no"))
    assert "as Arrow IPC" in problem(put(tmp_path / "e.arrow", "no such thing"))
    assert "cannot be read" in problem(put(tmp_path / "f.csv.gz", "not packed"))
    assert "two columns are called 'x'" in problem(put(tmp_path / "g.csv", "y,x,c,x\n1,2,3,4\n"))
    text = Format(columns=("y", "x", "c"))
    assert "2 fields, but format.columns of the schema names 3" in problem(
        put(tmp_path / "h.csv", "1,2\n"), text=text
    )


def test_a_cut_gz_file_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(("y,x,c\n" + "1,0.5,abc\n" * 200_000).encode(), compresslevel=0)
    assert "cannot be read" in problem(put(tmp_path / "a.csv.gz", whole[: len(whole) // 2]))


def test_recbole_files_are_joined(tmp_path: Path) -> None:
    put(tmp_path / "ml.inter", "user_id:token\titem_id:token\trating:float\n7\t01\t4\n8\t2\t3\n7\t3\t5\n")
    put(tmp_path / "ml.user", "user_id:token\tage:token\n8\t30\n7\t24\n")
    put(tmp_path / "ml.item", "item_id:token\tclass:token_seq\n01\tDrama Film-Noir\n2\t\n")
    columns: Mapping[str, RawType] = {
        "class": "string",
        "user_id": "string",
        "age": "float",
        "rating": "float",
    }
    assert rows_of(tmp_path / "ml.inter", columns) == [
        {"class": ["Drama", "Film-Noir"], "user_id": "7", "age": 24.0, "rating": 4.0},
        {"class": None, "user_id": "8", "age": 30.0, "rating": 3.0},
        {"class": None, "user_id": "7", "age": 24.0, "rating": 5.0},
    ]
    put(tmp_path / "ml.user", "user_id:token\tage:token\n8\t30\n8\t24\n")
    assert "'user_id' stands in two rows" in problem(tmp_path / "ml.inter", columns)


def test_quoted_line_breaks_belong_to_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block of the file ends between the quotes."""
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 64)
    texts = [f"title {i}\nline two, {i}" for i in range(50)]
    lines = [f'{i % 2},0.5,"{text}"' for i, text in enumerate(texts)]
    file = put(tmp_path / "a.csv", "\n".join(["y,x,c", *lines]) + "\n")
    assert [row["c"] for row in rows_of(file)] == texts
