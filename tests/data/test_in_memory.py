# SPDX-License-Identifier: Apache-2.0
"""Data sets in memory: loaded once, split for validation, and cut into batches."""

import generated
import numpy as np
import pytest

from rn_jax import InputError, data
from rn_jax.data import Examples


def numbered(n):
    """Return n examples of one pixel each, which is also the label."""
    labels = np.arange(n, dtype=np.int32)
    return Examples(labels.astype(np.uint8).reshape(n, 1, 1, 1), labels)


@pytest.fixture(scope="session")
def cifar10(cifar10_dir):
    """The real one, read once."""
    return data.load("cifar10", data_dir=cifar10_dir)


def test_load_returns_the_same_read_only_object(generated_dir, monkeypatch):
    dataset = data.load("mnist", data_dir=generated_dir)
    monkeypatch.setenv("TFDS_DATA_DIR", str(generated_dir))
    assert data.load("mnist") is dataset  # TFDS's own rule, the same folder
    detour = generated_dir / ".." / generated_dir.name
    assert data.load("mnist", data_dir=detour) is dataset
    for array in (dataset.train.images, dataset.test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_svhn_trains_on_train_and_extra(generated_dir):
    dataset = data.load("svhn_cropped", data_dir=generated_dir)
    sizes = generated.SIZES
    assert len(dataset.train) == sizes["train"] + sizes["extra"]
    assert len(dataset.test) == sizes["test"]


def test_real_cifar10_has_its_published_sizes_and_means(cifar10):
    assert cifar10.train.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test.images.shape == (10_000, 32, 32, 3)
    assert (np.bincount(cifar10.train.labels) == 5_000).all()
    assert (np.bincount(cifar10.test.labels) == 1_000).all()
    found = data.normalization(cifar10.train, "channel")
    published = np.array([0.49139968, 0.48215841, 0.44653091])
    np.testing.assert_allclose(found.mean / 255, published, atol=1e-7)
    # The deviations of fb.resnet.torch, in its rounding.
    np.testing.assert_allclose(found.std, [63.0, 62.1, 66.7], atol=0.06)


def test_real_cifar10_is_split_45k_5k(cifar10):
    train, validation = data.split_validation(cifar10, seed=0)
    assert (len(train), len(validation)) == (45_000, 5_000)


def test_damaged_records_are_for_stopping_or_skipping():
    with pytest.raises(InputError, match="must be stop or skip, not 'ignore'"):
        data.load("digits", damaged_records="ignore")


def test_split_validation_is_a_fixed_partition():
    dataset = whole(numbered(100))
    train, validation = data.split_validation(dataset, seed=3)
    assert (len(train), len(validation)) == (90, 10)
    both = np.concatenate([train.labels, validation.labels])
    assert sorted(both) == list(range(100))
    np.testing.assert_array_equal(validation.images.ravel(), validation.labels)
    again = data.split_validation(dataset, seed=3)[1]
    other = data.split_validation(dataset, seed=4)[1]
    np.testing.assert_array_equal(again.labels, validation.labels)
    assert set(other.labels) != set(validation.labels)


def whole(examples):
    spec = data.DatasetSpec(name="numbered", image_shape=(1, 1, 1), num_classes=100)
    return data.Dataset(spec, examples, examples, (len(examples),))


def test_too_few_examples_to_hold_some_out():
    with pytest.raises(InputError, match="9 training examples are too few"):
        data.split_validation(whole(numbered(9)), seed=0)


def test_validation_part_of_svhn_is_balanced():
    """It has 400 of each class from train and 200 from extra (Huang et al. 2016)."""
    spec = data.get_spec("svhn_cropped")
    assert spec.train_splits == ("train", "extra")
    rng = np.random.default_rng(0)
    sizes = (6_000, 9_000)
    shares = rng.dirichlet(np.full(10, 100.0), 2)  # classes are not as frequent
    labels = [rng.choice(10, n, p=p) for n, p in zip(sizes, shares, strict=True)]
    labels = np.concatenate(labels).astype(np.int32)
    images = np.zeros((15_000, 1, 1, 1), np.uint8)
    images[6_000:] = 1  # which split it is from
    train = data.Examples(images, labels)
    dataset = data.Dataset(spec, train, train, sizes)
    kept, held_out = data.split_validation(dataset, seed=0)
    assert (len(kept), len(held_out)) == (9_000, 6_000)
    for split, count in enumerate((400, 200)):
        of_split = held_out.labels[held_out.images.ravel() == split]
        assert np.bincount(of_split).tolist() == [count] * 10
    together = np.concatenate([kept.labels, held_out.labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(labels))
    with pytest.raises(InputError, match="takes 400 examples of each class from its"):
        few = data.Dataset(spec, train, train, (300, 14_700))
        data.split_validation(few, seed=0)


# Batches


def test_an_epoch_visits_every_example_at_most_once_in_an_order_of_its_own():
    examples, options = numbered(50), {"batch_size": 8, "seed": 1}
    epochs = []
    for epoch in range(3):
        batches = [
            data.train_batch(examples, step=6 * epoch + i, **options) for i in range(6)
        ]
        assert all(batch["mask"].all() and len(batch["mask"]) == 8 for batch in batches)
        epochs.append(np.concatenate([batch["label"] for batch in batches]))
        pixels = np.concatenate([batch["image"].ravel() for batch in batches])
        np.testing.assert_array_equal(pixels, epochs[-1])
        assert len(set(epochs[-1])) == 48  # 50 without the two dropped
        order = data.epoch_permutation(50, seed=1, epoch=epoch)
        np.testing.assert_array_equal(epochs[-1], order[:48])
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_batch_of_a_step_does_not_depend_on_the_steps_before():
    examples, options = numbered(40), {"batch_size": 7, "seed": 2}
    in_turn = [
        data.train_batch(examples, step=step, **options)["label"] for step in range(20)
    ]
    data.epoch_permutation.cache_clear()
    for step in (13, 0, 19, 6):
        alone = data.train_batch(examples, step=step, **options)["label"]
        np.testing.assert_array_equal(alone, in_turn[step])


@pytest.mark.parametrize("batch_size", [0, 41])
def test_batch_size_has_to_fit(batch_size):
    with pytest.raises(InputError, match=f"batch size of {batch_size} does not fit 40"):
        data.train_batch(numbered(40), step=0, batch_size=batch_size, seed=0)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 8), (5, 1)])
def test_evaluation_counts_every_example_once(n, batch_size):
    batches = list(data.eval_batches(numbered(n), batch_size=batch_size))
    assert len(batches) == -(-n // batch_size)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 1, 1, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32 and batch["mask"].dtype == np.bool_
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(n))


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_hosts_share_the_same_batch(kind, num_hosts):
    """Also the last batch of an evaluation, which has 1 real row of 8."""

    def batches(**host):
        parts = {"train": numbered(25), "test": numbered(25)}
        feed = data.InMemory(parts, batch_size=8, seed=1, **host)
        if kind == "evaluation":
            return feed.eval_batches("test", batch_size=8)
        return feed.train_batches(0, 5)

    hosts = [batches(host_index=i, num_hosts=num_hosts) for i in range(num_hosts)]
    for parts, whole in zip(zip(*hosts, strict=True), batches(), strict=True):
        assert {len(part["label"]) for part in parts} == {8 // num_hosts}
        for name, array in whole.items():
            together = np.concatenate([part[name] for part in parts])
            assert together.dtype == array.dtype
            np.testing.assert_array_equal(together, array)


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_orders_are_those_of_the_batches(num_hosts):
    """From the middle of an epoch of 3 steps to that of the next one."""
    for host_index in range(num_hosts):
        host = {"host_index": host_index, "num_hosts": num_hosts}
        examples = numbered(25)
        feed = data.InMemory({"train": examples}, batch_size=8, seed=1, **host)
        orders = list(feed.train_orders(1, 5))
        for step, batch in enumerate(feed.train_batches(1, 5), start=1):
            order = orders[step - 1]
            assert order.dtype == np.int32 and order.shape == (8 // num_hosts, 3)
            labels = examples.labels[order[:, step % 3]]
            np.testing.assert_array_equal(labels, batch["label"])
        assert orders[0] is orders[1] and orders[2] is orders[3]
        assert not np.array_equal(orders[1], orders[2])
