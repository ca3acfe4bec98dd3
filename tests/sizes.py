# SPDX-License-Identifier: Apache-2.0
"""Names of the table that stand for others, from which they differ in sizes alone."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import rn_jax


def one_of_each(names):
    """The first of the names, in order, whose networks are alike but for sizes."""
    found = {}
    for name in names:
        model = rn_jax.create_model(name)
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        found.setdefault(repr((type(model), _without_sizes(fields))), name)
    return list(found.values())


def _without_sizes(value):
    """With integers, which are sizes, replaced by their type."""
    if isinstance(value, partial):
        return value.func, _without_sizes(value.keywords)
    if isinstance(value, Mapping):
        return {key: _without_sizes(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return {repr(_without_sizes(entry)) for entry in value}
    return int if type(value) is int else value
