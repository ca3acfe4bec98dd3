# SPDX-License-Identifier: Apache-2.0
"""Singh et al. 2016: Swapout on CIFAR.

256 epochs of batches of 128, 0.1 divided by 10 at epochs 192 and 224. Errors are those
of stochastic inference with 30 samples; the study `gate_ensemble` draws 32. Both
masks have rates from 1 in the first block to 0.5 in the last, the best ones in the
paper.

We have read only the introduction of the paper. Secondary sources for the rest: the
page of the paper at ri.k117.org quotes the recipe; the repository nutszebra/swapout has
the error on CIFAR-10; the repository aleju/papers has the rates of the masks. The error
on CIFAR-100 is from memory.

    python -m experiments.run --config=configs/swapout32_w4.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        normalization="channel",
        epochs=256,
        lr_drops=(192, 224),
        lr_drops_unit="epochs",
        paper="Singh et al. 2016",
    )


ROWS = {
    "swapout32_w4": Row("table 4", {"cifar10": 4.76, "cifar100": 22.72}),
}
