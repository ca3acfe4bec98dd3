# SPDX-License-Identifier: Apache-2.0
"""Mean absolute weights between dense layers, weight by weight."""

import numpy as np
import pytest

from rn_jax.analysis import reuse
from rn_jax.models.densenet import DenseNet


@pytest.mark.parametrize("bottleneck", [False, True])
def test_weights_one_at_a_time(random_variables, bottleneck):
    model = DenseNet(
        (2, 3),
        num_classes=3,
        growth_rate=4,
        stem_features=5,
        bottleneck=bottleneck,
        compression=0.5,
    )
    params = random_variables(model, (8, 8, 3))["params"]
    found = reuse.mean_absolute_weights(params, model)
    assert list(found) == ["stage1", "stage2"]
    # Who made each map that a reader has: 5 of the stem, and floor(13 / 2) of the
    # transition, before 4 of every layer.
    for stage, size, inputs in (("stage1", 2, 5), ("stage2", 3, 6)):
        made_by = [0] * inputs + [s for s in range(1, size + 1) for _ in range(4)]
        readers = [params[stage][f"layer{i:02d}"]["conv1"] for i in range(1, size + 1)]
        readers += [params["transition1"]["conv"] if size == 2 else params["head"]]
        for column, reader in enumerate(readers):
            kernel = np.moveaxis(np.asarray(reader["kernel"]), -2, 0)
            for source in range(size + 1):
                mine = [k for k, s in zip(kernel, made_by, strict=False) if s == source]
                read = found[stage][source, column]
                if source > column:
                    assert np.isnan(read) and not mine
                else:
                    assert read == pytest.approx(np.abs(mine).mean(), rel=1e-6)
