"""One form per content: what hashes are taken over."""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit import registry
from stillfit.core.errors import RegistryError
from stillfit.core.values import Verdict
from stillfit.registry.canon import canonical, check_name, plain, readable
from stillfit.registry.durable import inside, reported

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_reading_and_writing_again_gives_the_same_bytes(value):
    for write in (canonical, readable):
        data = write(plain(value))
        assert write(json.loads(data)) == data
        assert data.isascii()


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6))
def test_the_order_of_keys_does_not_matter(table):
    assert canonical(table) == canonical(dict(reversed(table.items())))


@given(st.floats())
def test_every_float_comes_back_by_float(value):
    back = float(json.loads(canonical(plain(value))))
    assert back == value or (back != back and value != value)


def test_our_values_and_numpy_s_become_plain():
    @dataclass(frozen=True)
    class Pair:
        left: tuple[int, ...]
        right: object

    value = Pair((1, 2), {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)})
    assert plain(value) == {"left": [1, 2], "right": {"a": 0.5, "b": 3, "c": True}}
    verdict = Verdict(gate="g", accepted=False, because="no", figures={"d": float("nan")})
    assert plain(verdict)["figures"] == {"d": "nan"}
    assert canonical(plain(True)) == b"true"


@pytest.mark.parametrize("name", ["a", "replay", "fast-histo_2.b", "0", "x" * 64])
def test_good_names(name):
    assert check_name(name, "a lane") == name


@pytest.mark.parametrize("name", ["", ".", "..", "A", "a/b", "-a", "a\n", "ä", "x" * 65, "a b"])
def test_bad_names_are_refused_with_the_alphabet(name):
    with pytest.raises(RegistryError, match="cannot name a lane: use 1 to 64 of a-z, 0-9"):
        check_name(name, "a lane")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0"])
def test_no_path_leads_out(name, tmp_path):
    with pytest.raises(RegistryError, match="cannot name a file of the registry"):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "the disk is full: x could not be written"),
        (errno.EDQUOT, "the disk is full: x could not be written"),
        (errno.EACCES, "x may not be written .*who owns the registry"),
        (errno.EIO, "x could not be written .*see to the disk"),
    ],
)
def test_errors_of_the_system_are_told_in_words(code, text):
    with pytest.raises(RegistryError, match=text), reported(Path("x")):
        raise OSError(code, os.strerror(code))


def test_the_room_s_names_are_exactly_these():
    words = (
        "Architecture Checkpoint Command Entry Finding Head Manifest Measurement Registry "
        "StoredVersion VersionFacts Writer rebuild verify"
    )
    assert registry.__all__ == words.split()
    assert all(hasattr(registry, name) for name in registry.__all__)
