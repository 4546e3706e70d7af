"""Columns of a table file as arrays: numbers, codes of text, seconds, lists. Knows Arrow."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Column, Ragged, names_of
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.tables import did_you_mean

OTHER = "*"
_BATCH = 65536  # rows that are converted together
_CSV_BYTES = 2 * 2**20
_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zst")
_NANOSECONDS = 1_000_000_000


def files_of(path: Path, what: str) -> list[Path]:
    """The file, or the files that match a pattern in its last part, in order of their names.

    `what` says what was expected, for the `ConfigError` of a path that leads nowhere.
    """
    if not any(sign in path.name for sign in "*?["):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; give the path of {what}")
        return [path]
    files = sorted(file for file in path.parent.glob(path.name) if file.is_file())
    if not files:
        raise ConfigError(f"no file matches {path}; give the path of {what}")
    return files


def batches(
    file: Path,
    wanted: list[str],
    text: set[str],
    whole: str | None,
    time: str | None,
    delimiter: str,
) -> Iterator[Any]:
    """The `wanted` columns of a file as Arrow record batches.

    In CSV, columns in `text` are read as they are written, `whole` as whole numbers, `time` as
    seconds or timestamps, and all others as numbers.
    """
    try:
        if file.name.lower().endswith(_PARQUET):
            parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
            _check_columns(file, wanted, parquet.schema_arrow.names)
            yield from parquet.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False)
            return
        if not file.name.lower().endswith(_CSV):
            raise ConfigError(
                f"{file} is neither CSV nor Parquet by its name; known endings are "
                f"{', '.join([*_CSV, *_PARQUET])}"
            )
        options = {
            "read_options": pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BYTES),
            "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter),
        }
        with pyarrow.csv.open_csv(file, **options) as first:
            found = first.schema
        _check_columns(file, wanted, found.names)
        types = {
            name: _csv_type(file, name, found.field(name).type, text, whole, time)
            for name in wanted
        }
        convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=wanted)
        with pyarrow.csv.open_csv(file, **options, convert_options=convert) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        said = str(error).replace("\n", " ")
        raise DataError(
            f"{file} cannot be read: {said}. Is a cell of a column of numbers text, or a line cut? "
            "Text needs a `vocabulary`; a time must be a number or ISO 8601"
        ) from None


def _check_columns(file: Path, wanted: list[str], found: list[str]) -> None:
    for name in wanted:
        if name not in found:
            raise ConfigError(f"{file} has no column {name!r}{did_you_mean(name, found)}")
        if found.count(name) > 1:
            raise ConfigError(f"{file} has {found.count(name)} columns named {name!r}; rename them")


def _csv_type(
    file: Path, name: str, guessed: Any, text: set[str], whole: str | None, time: str | None
) -> Any:
    """How a CSV column is read, given what its first rows look like."""
    if name in text:
        return pa.string()
    if name == whole:
        return pa.int64()
    if name == time and (pa.types.is_timestamp(guessed) or pa.types.is_date(guessed)):
        zone = guessed.tz if pa.types.is_timestamp(guessed) else None
        return pa.timestamp("ns", zone)
    if pa.types.is_boolean(guessed) and name != time:
        return guessed
    if pa.types.is_temporal(guessed) and name != time:
        raise _not_a_number(file, name, guessed, "")
    return pa.float64()


def _not_a_number(file: Path, name: str, kind: Any, example: str) -> DataError:
    if pa.types.is_temporal(kind):
        return DataError(
            f"column {name!r} of {file} holds dates or times of day ({kind}); only the `time` "
            "column may hold dates (ISO 8601), others need a number"
        )
    return DataError(
        f"column {name!r} of {file} holds text{example}, not numbers; state its values in order as "
        f'vocabulary.{name} = ["...", "..."], or leave it out'
    )


def numbers(file: Path, name: str, array: Any, dtype: str) -> Column:
    """Numbers as float, an empty cell as NaN; lists as ragged, fixed-size lists as a matrix."""
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        items = numbers(file, name, array.flatten(), dtype)
        assert not isinstance(items, Ragged)
        return Ragged.from_counts(items, counts.astype(np.int64))
    if pa.types.is_fixed_size_list(kind):
        if array.null_count:
            raise DataError(f"column {name!r} of {file} lacks the list in {array.null_count} rows")
        items = numbers(file, name, array.flatten(), dtype)
        assert not isinstance(items, Ragged)
        return items.reshape(len(array), kind.list_size)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        if pa.types.is_null(kind):
            return np.full(len(array), np.nan, dtype)
        some = [str(value) for value in pc.unique(array.slice(0, 100)).to_pylist()[:3]]
        raise _not_a_number(file, name, kind, f" ({', '.join(some)}, ...)")
    values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    # What overflows single precision becomes infinite, and is set aside as that.
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)  # type: ignore[no-any-return]


def codes(
    file: Path, name: str, array: Any, words: tuple[str, ...], first_row: int, blank: bool
) -> NDArray[np.int64]:
    """Text as its place in `words`, the last place for anything else if that is `*`.

    `blank`: an empty cell is no error but -1 (a target that is not known).
    """
    texts = _as_text(file, name, array)
    found = pc.index_in(texts, value_set=pa.array(words, pa.string()))
    code: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype("i8")
    unknown = code < 0
    if blank:
        unknown &= ~pc.fill_null(pc.equal(texts, ""), True).to_numpy(zero_copy_only=False)
    if unknown.any():
        if words[-1] == OTHER:
            code[unknown] = len(words) - 1
            return code
        row = int(np.flatnonzero(unknown)[0])
        value = texts[row].as_py()
        raise DataError(
            f"column {name!r} of {file} holds {value!r} in row {first_row + row}, which "
            f"vocabulary.{name} does not list; add it, or {OTHER!r} at the end for all others"
        )
    return code


def texts(file: Path, name: str, array: Any) -> NDArray[np.str_]:
    """Text as it is, an empty cell as an empty text."""
    plain = pc.fill_null(_as_text(file, name, array), "")
    return np.array(plain.to_numpy(zero_copy_only=False), dtype=np.str_)


def _as_text(file: Path, name: str, array: Any) -> Any:
    try:
        return array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"column {name!r} of {file} is {array.type}, which cannot be read as text"
        ) from None


def whole_numbers(file: Path, name: str, array: Any, first_row: int) -> NDArray[np.int64]:
    """Event ids."""
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"column {name!r} of {file} has no id in row {first_row + row}")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise DataError(
            f"column {name!r} of {file} is {array.type}; event ids must be whole numbers: leave "
            "`id` out to count rows"
        )
    try:
        values: NDArray[np.int64] = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} of {file} has ids that are not whole: {error}") from None
    return values


def seconds(file: Path, name: str, array: Any, unit: float, epoch: int) -> NDArray[np.float64]:
    """Numbers times `unit` (s), dates and timestamps since `epoch` (ns since 1970), gaps as NaN."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parsed(file, name, array)
    elif pa.types.is_date(kind):
        array = array.cast(pa.timestamp("s")).cast(pa.timestamp("ns"))
    elif not pa.types.is_timestamp(kind):
        values = numbers(file, name, array, "float64")
        if isinstance(values, Ragged) or values.ndim > 1:
            raise DataError(f"the time column {name!r} of {file} holds lists; it needs one number")
        return values if unit == 1.0 else values * unit
    stamps = array.cast(pa.timestamp("ns", array.type.tz)).cast(pa.int64())
    missing = stamps.is_null().to_numpy(zero_copy_only=False)
    ticks = pc.fill_null(stamps, 0).to_numpy(zero_copy_only=False)
    # Whole seconds and the rest apart: one double of nanoseconds would round to 0.2 us.
    since, rest = np.divmod(ticks - epoch, _NANOSECONDS)
    return np.where(missing, np.nan, since + rest / _NANOSECONDS)


def _parsed(file: Path, name: str, array: Any) -> Any:
    for zone in (None, "UTC"):
        try:
            return array.cast(pa.timestamp("ns", zone))
        except pa.ArrowInvalid as error:
            why = str(error)
    raise DataError(f"the time column {name!r} of {file} is not ISO 8601: {why}")


def nanoseconds_of(epoch: str) -> int:
    """An ISO 8601 date or timestamp as ns since 1970 (UTC unless it says otherwise)."""
    try:
        stamp = datetime.datetime.fromisoformat(epoch)
    except ValueError:
        raise ConfigError(
            f"epoch = {epoch!r} is no ISO 8601 timestamp such as 2024-05-01T06:00:00+00:00"
        ) from None
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=datetime.UTC)
    away = stamp - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (away.days * 86400 + away.seconds) * _NANOSECONDS + away.microseconds * 1000


def check_vocabulary(name: str, words: tuple[str, ...]) -> None:
    """`ConfigError` unless the values differ and `*` is only at the end."""
    if not words or len(set(words)) < len(words) or OTHER in words[:-1]:
        raise ConfigError(
            f"vocabulary.{name} = {list(words)} must list different values, and {OTHER!r} (all "
            "others) only at its end"
        )


def check_distinct(what: str, names: tuple[str, ...]) -> None:
    """`ConfigError` if a column is named twice."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{what} names {names_of(twice)} more than once")


def is_known(column: Column) -> NDArray[np.bool_]:
    """Which rows of a target are known: not NaN, and no code below 0."""
    if isinstance(column, Ragged):
        return np.ones(len(column), np.bool_)
    values: Array = column.reshape(len(column), -1)
    bad = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return ~np.asarray(bad.any(axis=1))
