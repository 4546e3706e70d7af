"""The UCI regression benchmark: 20 fixed splits, one hidden layer of 50 units, nine sets."""

from stillfit.studies.uci.data import Table, find, load
from stillfit.studies.uci.protocol import PARQUET, PLAIN, methods, run
from stillfit.studies.uci.published import SETS, SOURCES
from stillfit.studies.uci.search import Recipe
from stillfit.studies.uci.tables import (
    Verdict,
    as_json,
    as_tables,
    as_text,
    hold_both,
    sentence,
    sentences,
    summarise,
    verdicts,
)

__all__ = [
    "PARQUET",
    "PLAIN",
    "SETS",
    "SOURCES",
    "Recipe",
    "Table",
    "Verdict",
    "as_json",
    "as_tables",
    "as_text",
    "find",
    "hold_both",
    "load",
    "methods",
    "run",
    "sentence",
    "sentences",
    "summarise",
    "verdicts",
]
