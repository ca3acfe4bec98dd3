# SPDX-License-Identifier: Apache-2.0
"""He et al. 2016: identity mappings, on CIFAR and on ImageNet.

On CIFAR the recipe is that of 2015 with a warm-up of 400 iterations in every run, and
errors are medians of 5 runs. The paper prints "fail" for a test error above 20 %;
exclusive gating fails for b_g from 0 to -5. On ImageNet the recipe is that of
fb.resnet.torch, with crops of random scale and without warm-up; errors are of one crop
of 320 pixels.

    python -m experiments.run --config=configs/preact_resnet164.py[:DATASET]
"""

from configs import Row, default, torch_imagenet


def get_config(dataset="cifar10"):
    return default.recipe(dataset, warmup=400, paper="He et al. 2016")


def _imagenet(error):
    crops = {"train_crop": "scale", "eval_resize": 320, "eval_size": 320}
    return torch_imagenet.row("table 5", error, paper="He et al. 2016", **crops)


_FAILS = {"expected_to_fail": True}

ROWS = {
    "resnet110_he2016": Row("tables 1 to 3", {"cifar10": 6.61}, {"model": "resnet110"}),
    "resnet110_scaling_0_1": Row("table 1", fields=_FAILS),
    "resnet110_scaling_05_1": Row("table 1", fields=_FAILS),
    "resnet110_scaling_05_05": Row("table 1", {"cifar10": 12.35}),
    "resnet110_exclusive_gating_0": Row("table 1", fields=_FAILS),
    "resnet110_exclusive_gating_6": Row("table 1", {"cifar10": 8.70}),
    "resnet110_exclusive_gating_7": Row("table 1", {"cifar10": 9.81}),
    "resnet110_shortcut_gating_0": Row("table 1", {"cifar10": 12.86}),
    "resnet110_shortcut_gating_6": Row("table 1", {"cifar10": 6.91}),
    "resnet110_conv_shortcut": Row("table 1", {"cifar10": 12.22}),
    "resnet110_dropout_shortcut": Row("table 1", fields=_FAILS),
    "resnet110_bn_after_addition": Row("table 2", {"cifar10": 8.17}),
    "resnet110_relu_before_addition": Row("table 2", {"cifar10": 7.84}),
    "resnet110_relu_only_preact": Row("table 2", {"cifar10": 6.71}),
    "preact_resnet110": Row("tables 2 and 3", {"cifar10": 6.37}),
    "resnet110_single_layer": Row("table 3, 1layer skip", {"cifar10": 9.90}),
    "preact_resnet110_single_layer": Row("table 3, 1layer skip", {"cifar10": 8.91}),
    "resnet164": Row("tables 2 and 3", {"cifar10": 5.93, "cifar100": 25.16}),
    "resnet164_bn_after_addition": Row("table 2", {"cifar10": 6.50}),
    "resnet164_relu_before_addition": Row("table 2", {"cifar10": 6.14}),
    "resnet164_relu_only_preact": Row("table 2", {"cifar10": 5.91}),
    "preact_resnet164": Row("tables 2 and 3", {"cifar10": 5.46, "cifar100": 24.33}),
    "resnet1001": Row("table 3", {"cifar10": 7.61, "cifar100": 27.82}),
    "preact_resnet1001": Row("table 3", {"cifar10": 4.92, "cifar100": 22.71}),
    "preact_resnet152": _imagenet(21.1),
    "resnet200": _imagenet(21.8),
    "preact_resnet200": _imagenet(20.7),
}
