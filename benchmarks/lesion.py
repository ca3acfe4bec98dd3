# SPDX-License-Identifier: Apache-2.0
"""The time to delete each block in turn: by gates, by editing parameters, in PyTorch.

    python -m benchmarks.lesion --model=resnet32 [--images=500] [--rounds=4]

One round is a whole study, with every block deleted once over all images. "gates" is
what `experiments.analyze` runs: one compiled function that skips closed blocks, with
images on the devices. "edited" is the naive way: the block's last BatchNorm is set to
zero in a copy of the parameters, batches come from the host, and everything is
computed. "torch" removes the branch from an eager PyTorch network.
"""

import argparse
import statistics

import jax
import numpy as np

import rn_jax
from benchmarks import measure
from benchmarks.training_step import make_batch
from rn_jax import data, parallel
from rn_jax.analysis import lesion


def preprocess(images: jax.Array) -> jax.Array:
    return data.normalize(images, 128.0, 64.0)


class ByGates:
    """A study by gates."""

    def __init__(self, model, variables, batches, devices):
        self.variables = parallel.replicate(variables, devices)
        self.batches = parallel.split_examples(batches, devices, axis=1)
        self.count = lesion.make_count_errors(model=model, preprocess=preprocess)
        self.gates = np.ones(model.num_blocks, np.float32)

    def __call__(self) -> list[int]:
        """Return the number of errors of each lesion."""
        every = range(len(self.gates))
        gates = (lesion.without(self.gates, [block]) for block in every)
        return [int(self.count(self.variables, g, self.batches)) for g in gates]


class ByEditing:
    """A study by a copy of the parameters for each lesion."""

    def __init__(self, model, variables, batches, devices):
        self.model, self.batches, self.devices = model, batches, devices
        self.unstacked = jax.device_get(rn_jax.unstack(variables))

        @jax.jit
        def count(variables, batch):
            logits = model.apply(variables, preprocess(batch["image"]), train=False)
            wrong = logits.argmax(axis=-1) != batch["label"]
            return (wrong & batch["mask"]).sum()

        self.count = count

    def __call__(self) -> list[int]:
        """Return the number of errors of each lesion."""
        errors = []
        for block in self.model.blocks:
            wrong = 0
            variables = rn_jax.stack(self._without(block), self.model)
            variables = parallel.replicate(jax.device_get(variables), self.devices)
            for i in range(len(self.batches["label"])):
                batch = jax.tree.map(lambda a, i=i: a[i], self.batches)
                batch = parallel.split_examples(batch, self.devices)
                wrong += int(self.count(variables, batch))
            errors.append(wrong)
        return errors

    def _without(self, block):
        edited = jax.tree.map(lambda leaf: leaf, self.unstacked)
        stage, name = block.name.split("/")
        last = edited["params"][stage][name]["bn2"]
        last.update({key: np.zeros_like(value) for key, value in last.items()})
        return edited


def by_torch(model, batches):
    """Return the study in PyTorch, in evaluation mode without gradients."""
    import torch
    from torch import nn

    from benchmarks import torch_peer

    class Shortcut(nn.Module):
        """A block of `torch_peer` without its branch."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block.shortcut(x).relu()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = torch_peer.build(model, None).to(device).eval()
    net = net.to(memory_format=torch.channels_last)
    images = torch.from_numpy(batches["image"].transpose(0, 1, 4, 2, 3)).to(device)
    labels = torch.from_numpy(batches["label"]).to(device)

    @torch.inference_mode()
    def study():
        for i, block in enumerate(net.blocks):
            net.blocks[i] = Shortcut(block)
            wrong = 0
            for part, truth in zip(images, labels, strict=True):
                part = part.contiguous(memory_format=torch.channels_last)
                logits = net((part.float() - 128) / 64)
                wrong += int((logits.argmax(1) != truth).sum())
            net.blocks[i] = block

    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", default="resnet32", help="a CIFAR ResNet with basic blocks"
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--peer", choices=("torch",))
    options = parser.parse_args()

    devices = parallel.choose_devices(None, options.batch_size)
    model = rn_jax.create_model(options.model)
    image = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda key: model.init({"params": key}, image, train=False))
    variables = jax.device_get(init(jax.random.key(0)))
    batches = jax.tree.map(
        lambda a: a.reshape(-1, options.batch_size, *a.shape[1:]),
        make_batch(options.images // options.batch_size * options.batch_size, 32),
    )
    sides = {
        "gates": ByGates(model, variables, batches, devices),
        "edited": ByEditing(model, variables, batches, devices),
    }
    if options.peer:
        sides["torch"] = by_torch(options.model, batches)
    assert sides["gates"]() == sides["edited"](), "the two ways differ"
    seconds = measure.alternate(sides, rounds=options.rounds, warmup=1)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"gates / {name}": measure.ratio(seconds["gates"], seconds[name])
        for name in sides
        if name != "gates"
    }
    for name, median in medians.items():
        print(f"{name:8} {median:.2f} s for {model.num_blocks} lesions")
    for name, found in ratios.items():
        print(
            f"{name}: {found['median']:.2f} "
            f"({found['quartile_1']:.2f} to {found['quartile_3']:.2f})"
        )
    result = {**vars(options), "median_seconds": medians, "ratios": ratios}
    name = f"lesion_{options.model}_{jax.default_backend()}"
    print(measure.write(name, result, "torch"))


if __name__ == "__main__":
    main()
