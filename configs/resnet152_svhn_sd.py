# SPDX-License-Identifier: Apache-2.0
"""The same with stochastic depth, p_L = 0.5 (Huang et al. 2016, table 1).

Published: 1.75 % test error at the best validation error. See resnet152_svhn.py.

    python -m experiments.run --config=configs/resnet152_svhn_sd.py
"""

from configs import resnet152_svhn


def get_config(dataset="svhn_cropped"):
    config = resnet152_svhn.get_config(dataset)
    config.stochastic_depth = {"last_survival": 0.5}
    config.published_error_percent = {"svhn_cropped": 1.75}
    return config
