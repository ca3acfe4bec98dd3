# SPDX-License-Identifier: Apache-2.0
"""The sentences of errors, and the values in them."""

import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax.errors import (
    InputError,
    first_line,
    missing_folder,
    shown,
    unknown_name,
    whole_number,
)


@pytest.mark.parametrize(
    "name, known, expected",
    [
        ("cifar_10", ["svhn", "cifar10"], "'cifar_10'; similar: cifar10; hint."),
        ("zzz", ["svhn", "cifar10"], "'zzz'; available: cifar10, svhn; hint."),
        ("zzz", [], "'zzz'; available: none; hint."),
        ("zzz", map(str, range(150)), "'zzz'; no similar name among 150; hint."),
    ],
)
def test_an_unknown_name_lists_similar_names_or_all(name, known, expected):
    error = unknown_name("data set", name, known, "hint")
    assert str(error) == f"Unknown data set {expected}"


def test_a_missing_folder_is_named(tmp_path):
    error = missing_folder(tmp_path / "none" / "a")
    assert str(error).startswith(f"There is no folder {tmp_path / 'none'}: make it")


class Broken:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a\nb", r"'a\nb'"),
        (np.array([[1], [2]]), "[[1], [2]]"),
        (Broken(), "a value of Broken"),
        ("x" * 200, f"'{'x' * 96}..."),
    ],
)
def test_values_are_shown_in_one_short_line(value, expected):
    assert shown(value) == expected


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), jnp.int32(3)])
def test_integers_of_every_type_are_whole_numbers(value):
    assert whole_number("size", value) == 3
    assert type(whole_number("size", value)) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, np.True_])
def test_other_values_are_not(value):
    with pytest.raises(InputError, match=r"^size must be a whole .* at least 1, not "):
        whole_number("size", value)


def test_the_first_line_of_a_message():
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert first_line(ValueError("")) == "no message"
    assert len(first_line(ValueError("x" * 300))) == 200
