# SPDX-License-Identifier: Apache-2.0
"""He et al. 2015 on ImageNet, section 3.4: ResNets and plain networks.

Errors are those of 10 crops, which `python -m experiments.evaluate --crops=ten`
measures for a finished run. The rate is divided when the validation error plateaus,
within 600,000 iterations. BatchNorm is tested with averages over training images, as in
the released networks. The mean image is that of the centre crops of
`mean_image_examples` training images. 50,000 training images are held out for
validation, so that the test images choose nothing.

The paper compares option C only for ResNet-34. resnet50_c shows what it costs with
bottlenecks, whose shortcuts join the ends with many channels: a projection of 256
channels doubles a block of 69,632 weights to 135,168, and the network has 40,128,552
parameters instead of 25,557,032.

On another data set, named after the colon, the network has the stem for small images
and trains for as many epochs as on ImageNet: 120 instead of 600,000 iterations.

    python -m experiments.run --config=configs/resnet34_a.py[:DATASET]
"""

from configs import Row, default
from rn_jax import data


def get_config(dataset="imagenet2012"):
    of_imagenet = dataset == "imagenet2012"
    return default.recipe(
        dataset,
        batch_size=256,
        **length(dataset, 600_000),
        lr_schedule="plateau",
        protocol="45k5k",
        train_crop="scale",
        pca_noise=0.1 if of_imagenet else 0.0,
        batch_norm_at_test="exact",
        model_kwargs={} if of_imagenet else {"stem": "small"},
    )


def length(dataset, steps):
    """Return a length in steps of 256 on ImageNet, elsewhere as many epochs."""
    if dataset == "imagenet2012":
        return {"steps": steps}
    return {"epochs": round(steps * 256 / data.get_spec("imagenet2012").num_train)}


def _row(where, error, model=None, **model_kwargs):
    fields = {"model_kwargs": model_kwargs} | ({"model": model} if model else {})
    return Row(where, {"imagenet2012": error} if error else {}, fields)


_STRIDE = {"block_kwargs": {"stride_on": "1x1"}}

ROWS = {
    "plain18": _row("table 2", 27.94),
    "plain34": _row("table 2", 28.54),
    "resnet18": _row("table 2, shortcut A", 27.88, shortcut="A"),
    "resnet34_a": _row("tables 2 and 3", 25.03, "resnet34", shortcut="A"),
    "resnet34_b": _row("table 3", 24.52, "resnet34"),
    "resnet34_c": _row("table 3", 24.19, "resnet34", shortcut="C"),
    "resnet50": _row("table 3", 22.85, **_STRIDE),
    "resnet50_c": _row("section 4.1", None, "resnet50", shortcut="C", **_STRIDE),
    "resnet101": _row("table 3", 21.75, **_STRIDE),
    "resnet152": _row("table 3", 21.43, **_STRIDE),
}
