# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 on a small imagenet2012, through the commands that train and evaluate.

In `make test` the tiny network instead, on the same images.
"""

import dataclasses
import importlib
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from driver import ROOT, assert_same_run, crash_after, in_process, lines, stop_after
from etils import epath
from PIL import Image
from safetensors.numpy import load_file, save
from scipy import special
from tiny import TINY

from experiments import evaluate, export, predict
from experiments.config import read_config
from experiments.studies import subject
from experiments.training import evaluation, feed, trained
from rn_jax import InputError, create_model
from rn_jax.data import imagenet, transforms
from rn_jax.models import MODELS
from rn_jax.models.vgg import VGG

pytest.importorskip("grain")

OPTIONS = [
    "--config.image_size=32",
    "--config.train_scales=(32, 40)",
    "--config.eval_resize=36",
    "--config.eval_size=32",
    "--config.eval_crops=ten",
    "--config.eval_batch_size=4",
    "--config.batch_size=4",
    "--config.num_devices=2",
    "--config.steps=12",
    "--config.eval_every_steps=5",
    "--config.batch_norm_examples=8",
    "--config.learning_rate=0.01",
    "--config.log_every_steps=1",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    generated = importlib.import_module("generated")
    folder = tmp_path_factory.mktemp("tfds")
    generated.prepare_imagenet(folder, train=40, validation=9)
    return folder


def argv(workdir, data_dir, *more):
    return [
        f"--config={ROOT}/configs/resnet18.py",
        f"--workdir={workdir}",
        f"--config.data_dir={data_dir}",
        f"--config.compilation_cache={ROOT}/.cache/jax",
        *OPTIONS,
        *more,
    ]


def train(workdir, data_dir, model):
    """12 steps of 4 images in this process, by the recipe of He et al. 2015."""
    options = [f"--config.model={model}", "--config.num_workers=0"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(MODELS, "tiny", TINY)
        assert in_process(monkeypatch, argv(workdir, data_dir, *options)) == 0
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("imagenet") / "whole"
    return train(workdir, data_dir, "tiny")


def check_recipe(finished):
    config = read_config(epath.Path(finished))
    assert (config.train_crop, config.pca_noise) == ("scale", 0.1)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 12
    # 40 images less the tenth that is held out are nine steps an epoch.
    assert summary["epochs"] == 1.33
    assert summary["val_error_percent"] is not None
    steps = [ln for ln in lines(finished) if ln["kind"] == "step"]
    assert [ln["step"] for ln in steps] == list(range(1, 13))
    assert len({ln["train_loss"] for ln in steps}) == 12
    return summary


def test_a_run_by_the_recipe_of_he_2015(finished):
    check_recipe(finished)


@pytest.mark.slow
def test_resnet18_by_the_recipe_of_he_2015(tmp_path, data_dir):
    summary = check_recipe(train(tmp_path / "run", data_dir, "resnet18"))
    assert summary["params"] == 11_689_512 - 173_824  # shortcut A


def centre_crops(records, indices, size):
    """Of resized images, by the test's own cut."""
    crops = []
    for image, *_ in records.decode(np.asarray(indices)):
        image = transforms.resize_shorter(image, 36)
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        crops.append(image[top : top + size, left : left + size])
    return np.stack(crops).astype(np.float64)


def kept_mean(workdir):
    return load_file(workdir / "mean_image.safetensors")["mean"]


def test_the_mean_image_is_of_training_images_and_kept_with_the_run(
    finished, monkeypatch
):
    config = read_config(epath.Path(finished))
    assert config.normalization == "mean_image"
    mean = kept_mean(finished)
    for host in (0, 1):  # of two, each by itself
        few = dataclasses.replace(config, mean_image_examples=5)
        source = feed.make_feed(config, host_index=host, num_hosts=2)
        train = source.parts["train"]
        expected = centre_crops(train, range(36), 32).mean(axis=0)
        np.testing.assert_array_equal(mean, expected.astype(np.float32))
        np.testing.assert_array_equal(feed.mean_image(source, config), mean)
        # A smaller sample, drawn by the number of images alone.
        chosen = np.sort(np.random.default_rng(0).permutation(36)[:5])
        five = feed.mean_image(source, few)
        expected = centre_crops(train, chosen, 32).mean(axis=0)
        np.testing.assert_array_equal(five, expected.astype(np.float32))
    # Every command that reads the run has that image, and takes no other.
    monkeypatch.setattr(feed, "mean_image", None)
    run = trained.finished(str(finished), num_workers=0)
    np.testing.assert_array_equal(run.experiment.normalization.mean, mean)
    assert run.experiment.normalization.std == 1
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(run.experiment.preprocess(pixels), pixels - mean)
    told = export.facts(run)["normalization"]
    assert told["kind"] == "mean_image"
    np.testing.assert_array_equal(np.float32(told["mean"]), mean)


def test_a_run_goes_on_with_the_mean_image_it_began_with(
    finished, data_dir, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    options = ["--config.model=tiny", "--config.num_workers=0"]
    options = argv(workdir, data_dir, *options)
    file = workdir / "mean_image.safetensors"
    monkeypatch.setitem(MODELS, "tiny", TINY)
    good, bad = file.read_bytes(), save({"mean": np.zeros((8, 8, 3), np.float32)})
    for content in (good[:100], good[:-4], b"", bad, save({"other": np.zeros(2)})):
        file.write_bytes(content)
        assert in_process(monkeypatch, options) == 2
        err = capsys.readouterr().err
        assert "mean_image.safetensors is damaged" in err and err.count("\n") == 1
    other = save({"mean": kept_mean(finished) + 1})
    file.write_bytes(other)
    monkeypatch.setattr(feed, "mean_image", None)
    assert in_process(monkeypatch, options) == 0
    assert file.read_bytes() == other


@pytest.mark.slow
@pytest.mark.parametrize("end", ["signal", "crash"])
def test_stopped_and_resumed_with_worker_processes_it_ends_the_same(
    finished, data_dir, tmp_path, monkeypatch, end
):
    """A crash saves nothing: the run goes on from the checkpoint before it."""
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        options = ["--config.model=tiny", "--config.num_workers=1"]
        options = argv(workdir, data_dir, *options)
        if end == "signal":
            stop_after(patch, 7, imagenet.Source)
            assert in_process(monkeypatch, options) == 75
        else:
            crash_after(patch, 7, imagenet.Source)
            with pytest.raises(RuntimeError, match="a crash"):
                in_process(monkeypatch, options)
            saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
            assert 0 < max(saved) < 7
    assert not (workdir / "summary.json").exists()
    options = ["--config.model=tiny", "--config.num_workers=0"]
    options = argv(workdir, data_dir, *options)
    assert in_process(monkeypatch, options) == 0
    assert_same_run(workdir, finished)


def test_the_held_out_images_are_none_that_are_trained_on(finished):
    config = read_config(epath.Path(finished))
    parts = feed.make_feed(config, host_index=0, num_hosts=1).parts
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 36,
        "val": 4,
        "test": 9,
    }
    labels = {
        name: [label for _, label, _ in part.decode(np.arange(len(part)))]
        for name, part in parts.items()
    }
    assert sorted(labels["train"] + labels["val"]) == list(range(40))
    assert sorted(labels["test"]) == list(range(9))


def test_some_training_images_are_none_that_are_held_out(finished):
    config = read_config(epath.Path(finished))
    config = dataclasses.replace(config, train_examples=10)
    parts = feed.make_feed(config, host_index=0, num_hosts=1).parts
    labels = {
        name: [label for _, label, _ in parts[name].decode(np.arange(len(parts[name])))]
        for name in ("train", "val")
    }
    assert len(set(labels["train"])) == 10 and len(labels["val"]) == 4
    assert not set(labels["train"]) & set(labels["val"])


@pytest.mark.parametrize("num_hosts", [2, 4])
@pytest.mark.parametrize("dataset", ["digits", "imagenet2012"])
def test_hosts_make_their_rows_of_the_same_batches(finished, dataset, num_hosts):
    """Also the last ones of an evaluation, of which a host may have no real row."""
    config = read_config(epath.Path(finished))
    config = dataclasses.replace(config, dataset=dataset, num_workers=0)
    whole, *hosts = (
        feed.make_feed(config, host_index=host, num_hosts=count)
        for host, count in [(0, 1), *((host, num_hosts) for host in range(num_hosts))]
    )

    def batches(source):
        size = 4 if dataset == "imagenet2012" else 100  # of 9 images, or 360
        trained = source.train_batches(8, 11)
        return [*trained, *source.eval_batches("test", batch_size=size)]

    by_host = zip(*map(batches, hosts), strict=True)
    for parts, batch in zip(by_host, batches(whole), strict=True):
        for name, array in batch.items():
            together = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(together, array)


@pytest.mark.parametrize(
    "crops", [pytest.param("center", marks=pytest.mark.slow), "ten"]
)
def test_evaluation_by_crops_is_that_of_one_image_at_a_time(
    finished, monkeypatch, capsys, crops
):
    argv = [f"--workdir={finished}", f"--crops={crops}", "--resize=36", "--size=32"]
    assert evaluate.main([*argv, "--num_workers=0", "--batch_size=4"]) == 0
    found = json.loads((finished / f"evaluation_{crops}.json").read_text())
    run = trained.finished(str(finished), num_workers=0)
    records = run.experiment.feed.parts["test"]
    apply = jax.jit(partial(run.model.apply, train=False))
    ranks = []
    for image, label, _ in records.decode(np.arange(9)):
        views = transforms.eval_view(image, crops=crops, resize=36, size=32).reshape(
            -1, 32, 32, 3
        )
        # As many views as the other, so that one program is compiled.
        pixels = run.experiment.preprocess(np.resize(views, (10, 32, 32, 3)))
        scores = special.softmax(np.float64(apply(run.variables, pixels)), axis=1)
        mean = scores[: len(views)].mean(axis=0)
        ranks.append((mean > mean[label]).sum())
    ranks = np.array(ranks)
    assert found["images"] == 9
    assert found["top1_error_percent"] == pytest.approx(100 * np.mean(ranks >= 1))
    assert found["top5_error_percent"] == pytest.approx(100 * np.mean(ranks >= 5))
    assert "9 images" in capsys.readouterr().out
    if crops == "ten":
        summary = json.loads((finished / "summary.json").read_text())
        assert summary["test_error_percent"] == pytest.approx(
            found["top1_error_percent"]
        )


def test_predictions_are_of_the_centre_crop(finished, tmp_path, capsys):
    run = trained.finished(str(finished), num_workers=0)
    image, *_ = next(iter(run.experiment.feed.parts["test"].decode(np.arange(1))))
    Image.fromarray(image).save(tmp_path / "x.png")
    argv = [f"--workdir={finished}", str(tmp_path / "x.png"), "--top=1"]
    assert predict.main(argv) == 0
    resize, size = run.config.eval_resize, run.config.eval_size
    view = transforms.eval_view(image, crops="center", resize=resize, size=size)
    pixels = run.experiment.preprocess(view[None])
    logits = jax.jit(partial(run.model.apply, train=False))(run.variables, pixels)
    expected = special.softmax(np.float64(logits[0]))
    told = re.search(r"x.png: (\d+) ([\d.]+) %", capsys.readouterr().out)
    assert int(told[1]) == expected.argmax()
    assert float(told[2]) == pytest.approx(100 * expected.max(), abs=0.02)
    assert export.facts(run)["image_shape"] == (size, size, 3)


def test_dense_scores_are_means_over_whole_images_of_every_scale(data_dir):
    """By a stand-in for a network, which tells shapes and mirror images apart."""
    records = imagenet.open_records(data_dir)["test"]
    scales = (32, 64)

    def probabilities(images):
        assert len(images) == 4
        pixels = images.astype(np.float64)
        left = pixels[:, :, :5].mean(axis=(1, 2, 3))
        return np.stack([left, pixels.shape[2] * np.ones(len(left))], axis=1)

    view = partial(transforms.dense_views, sizes=scales, multiple=32)
    batch = partial(imagenet.eval_batch, records, count=9, batch_size=1, view=view)
    batches = map(batch, range(9))
    labels, scores = evaluation.by_shape(batches, 9, 4, probabilities)
    for place, (image, label, _) in enumerate(records.decode(np.arange(9))):
        assert labels[place] == label
        lefts, widths = [], []
        for scale in scales:
            resized = transforms.resize_shorter(image, scale)
            assert min(resized.shape[:2]) == scale
            height, width = (side - side % 32 for side in resized.shape[:2])
            top = (resized.shape[0] - height) // 2
            left = (resized.shape[1] - width) // 2
            window = (slice(top, top + height), slice(left, left + width))
            cut, mirrored = resized[window], resized[:, ::-1][window]
            lefts += [cut[:, :5].mean(), mirrored[:, :5].mean()]
            widths += [width, width]
        np.testing.assert_allclose(scores[place], [np.mean(lefts), np.mean(widths)])


@pytest.mark.slow
def test_dense_evaluation_of_a_run(finished, capsys):
    argv = [f"--workdir={finished}", "--crops=dense", "--scales=32,64", "--images=3"]
    assert evaluate.main([*argv, "--num_workers=0", "--batch_size=2"]) == 0
    found = json.loads((finished / "evaluation_dense.json").read_text())
    assert found["scales"] == [32, 64] and found["images"] == 3
    assert 0 <= found["top5_error_percent"] <= found["top1_error_percent"] <= 100


BAD = {
    "crops": (["--config.image_size=64"], "Crops must fit the images"),
    "test crop": (["--config.eval_size=64"], "Crops must fit the images"),
    "channel": (["--config.normalization=channel"], "use mean_image, imagenet_mean"),
    "no mean": (["--config.mean_image_examples=0"], "must be at least 1, not 0"),
    "choice": (["--config.eval_crops=320"], "eval_crops must be one of center, ten"),
}


@pytest.mark.parametrize("options, sentence", BAD.values(), ids=BAD)
def test_bad_settings(data_dir, tmp_path, monkeypatch, capsys, options, sentence):
    assert in_process(monkeypatch, argv(tmp_path / "w", data_dir, *options)) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_bad_evaluations(finished, tmp_path, capsys):
    for options, sentence in (
        ([], "required: --workdir; --help"),
        ([f"--workdir={tmp_path}"], "is not a run"),
        ([f"--workdir={finished}", "--size=300"], "300 does not fit a shorter side of"),
        ([f"--workdir={finished}", "--scales=30"], "must be multiples of 32"),
        ([f"--workdir={finished}", "--images=0"], "--images must be at least 1"),
    ):
        assert evaluate.main(options) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(InputError, match="Studies need a data set that fits"):
        subject.from_run(str(finished))


@pytest.mark.slow
def test_dense_evaluation_of_fully_connected_layers(
    finished, monkeypatch, random_variables
):
    """VGG sees 7x7 windows of whole images, with the scores that it gives itself."""
    like = trained.finished(str(finished), num_workers=0)
    classes = like.model.num_classes
    vgg = VGG((1,) * 5, features=(4,) * 5, hidden=(6, 6), num_classes=classes)
    vgg = like._replace(model=vgg, variables=random_variables(vgg, (32, 32, 3)))
    monkeypatch.setattr(trained, "finished", lambda path, **_: vgg)
    argv = [f"--workdir={finished}", "--crops=dense", "--images=2", "--batch_size=2"]
    asked = []
    whole = VGG.for_whole_images
    monkeypatch.setattr(VGG, "for_whole_images", lambda m: asked.append(m) or whole(m))
    assert evaluate.main([*argv, "--scales=224,256"]) == 0 and asked == [vgg.model]
    found = json.loads((finished / "evaluation_dense.json").read_text())
    assert found["scales"] == [224, 256] and found["images"] == 2


def test_networks_for_images_of_one_size_are_not_evaluated_densely(
    finished, monkeypatch, capsys
):
    like = trained.finished(str(finished), num_workers=0)
    mlp = like._replace(model=create_model("highway10_mnist"))
    monkeypatch.setattr(trained, "finished", lambda path, **_: mlp)
    assert evaluate.main([f"--workdir={finished}", "--crops=dense"]) == 2
    assert "takes images of one size only" in capsys.readouterr().err
