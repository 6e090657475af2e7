"""The formats that series are read from, by the suffix of a file.

A folder with a meta.json is a data set in the Time-300B layout; any file with a suffix of this
table is a data set too. Some formats hold series and are refused, because opening them would run
what is written in them; the error says how to rewrite them. `docs/data.md` shows this table.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tsx.data.arrays import open_npy, parse_npy, parse_npz
from tsx.data.columnar import parse_arrow, parse_parquet
from tsx.data.delimited import parse_csv
from tsx.data.jsonl import parse_json, parse_jsonl
from tsx.data.parsed import Parse, Report, ignore, open_parsed
from tsx.data.series import META_NAME, DataSet, MapPool, open_dataset
from tsx.errors import DataError


@dataclass(frozen=True)
class Format:
    """A kind of file that holds series."""

    name: str  # also of its parsed copies
    suffixes: tuple[str, ...]
    series: str  # what one series is
    parse: Parse
    is_mapped: bool = False  # read where it lies, without a copy


FORMATS = (
    Format(
        "jsonl", (".jsonl", ".jsonl.gz"), 'a line: `[...]` or `{"sequence": [...]}`', parse_jsonl
    ),
    Format(
        "json", (".json", ".json.gz"), "an element of the one list: as a line above", parse_json
    ),
    Format("npy", (".npy",), "a row, or the whole of one dimension", parse_npy, is_mapped=True),
    Format("npy.gz", (".npy.gz",), "as npy", parse_npy),
    Format("npz", (".npz",), "as npy, array after array", parse_npz),
    Format(
        "csv", (".csv", ".csv.gz"), "a column; a first one of dates or text is left out", parse_csv
    ),
    Format("parquet", (".parquet",), "a row of the list column, or a column", parse_parquet),
    Format("arrow", (".arrow", ".feather"), "a row of the list column, or a column", parse_arrow),
)

_PICKLE = (
    "is a pickle, which runs code when it is opened; it never is",
    'where you trust the file: python -c "import pickle, sys, numpy; '
    "numpy.savez('series.npz', *pickle.load(open(sys.argv[1], 'rb')))\"",
)
_YAML = (
    "is yaml, which may name Python objects to build and has no numbers of its own; it is not read",
    'rewrite it: python -c "import json, sys, yaml; '
    "json.dump(yaml.safe_load(open(sys.argv[1])), open('series.json', 'w'))\"",
)
REFUSED = {
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".yaml": _YAML,
    ".yml": _YAML,
}


def find_suffix(path: Path) -> str | None:
    """Return the suffix by which a file is known to hold series, refused ones included."""
    name = path.name.lower()
    known = [suffix for format in FORMATS for suffix in format.suffixes] + list(REFUSED)
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default=None)


def list_suffixes() -> list[str]:
    """Return the suffixes of all files that can be read."""
    return [suffix for format in FORMATS for suffix in format.suffixes]


def open_series(
    name: str, path: Path, pool: MapPool, *, cache: Path, report: Report = ignore
) -> DataSet:
    """Open a data set of any format.

    Args:
        name: "<domain>/<dataset>".
        path: its folder or file.
        pool: keeps the maps of the whole corpus.
        cache: folder of parsed copies.
        report: told the share that is parsed, where parsing is needed.

    Raises:
        DataError: it cannot be read as it is; see each format's own function.
    """
    if path.is_dir():
        return open_dataset(name, path, pool)
    format = get_format(path, f"data set '{name}'")
    if format.is_mapped:
        return open_npy(name, path, pool, cache=cache, report=report)
    return open_parsed(
        name, path, pool, kind=format.name, parse=format.parse, cache=cache, report=report
    )


def get_format(path: Path, place: str) -> Format:
    """Return the format of a file.

    Raises:
        DataError: none that is read; one that is refused says why.
    """
    suffix = find_suffix(path)
    for format in FORMATS:
        if suffix in format.suffixes:
            return format
    if suffix is None:
        raise DataError(f"{place}: {path} is of no known format; {describe_formats()}")
    why, instead = REFUSED[suffix]
    raise DataError(f"{place}: {path} {why}", next_command=f"{instead} {shlex.quote(str(path))}")


def describe_formats() -> str:
    """Return what is read, for an error."""
    return (
        f"expected folders of {META_NAME} and data-<i>-of-<n>.bin, or {', '.join(list_suffixes())}"
    )


def make_table() -> list[str]:
    """Return the table of `docs/data.md`, line by line."""
    lines = ["| file | one series is | read |", "|---|---|---|"]
    lines.append(f"| folder with `{META_NAME}` | an entry of `scales` | mapped |")
    for format in FORMATS:
        suffixes = ", ".join(f"`{suffix}`" for suffix in format.suffixes)
        how = "mapped" if format.is_mapped else "parsed once"
        lines.append(f"| {suffixes} | {format.series} | {how} |")
    refused = ", ".join(f"`{suffix}`" for suffix in REFUSED)
    lines.append(f"| {refused} | refused: reading them can run code | |")
    return lines
