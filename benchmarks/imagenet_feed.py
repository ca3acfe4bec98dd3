# SPDX-License-Identifier: Apache-2.0
"""Pictures per second of ImageNet's host pipeline, other loaders and decoders.

    python -m benchmarks.imagenet_feed [--workers=N] [--peer=torch]

The pictures are 500x375 JPEGs cut from scikit-learn's two photographs, in one
array_record file that every side reads. A side decodes them, takes random crops by area
and aspect of 224x224 pixels, mirrors half of them, and returns batches of uint8;
normalisation is left to the device. "in_process" makes batches in this process and
measures processor time, the rate of one core. "with_workers" has worker processes
(threads for tf.data) and measures wall time after each worker has returned two batches;
the time to the first batch is reported separately. PyTorch's side is its DataLoader
with torchvision's transforms on Pillow images. tf.data is timed if TensorFlow is
installed.
"""

import argparse
import functools
import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorflow_datasets.proto import tf_example_pb2

from benchmarks import measure
from rn_jax import parallel
from rn_jax.data import imagenet, transforms
from rn_jax.data.tfds import parse_record

HEIGHT, WIDTH, SIZE = 375, 500, 224


def make_jpegs(count: int, quality: int) -> list[bytes]:
    """Return random windows of the photographs, resized to 500x375."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    encoded = []
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        top, left, h, w = transforms.area_window(
            rng, *photograph.shape[:2], area=(0.3, 1), aspect=(WIDTH / HEIGHT,) * 2
        )
        window = Image.fromarray(photograph[top : top + h, left : left + w])
        stream = io.BytesIO()
        window.resize((WIDTH, HEIGHT), Image.LANCZOS).save(
            stream, "JPEG", quality=quality
        )
        encoded.append(stream.getvalue())
    return encoded


def write_records(path: Path, jpegs: list[bytes]) -> None:
    """Write records as tensorflow-datasets does."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for label, encoded in enumerate(jpegs):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(encoded)
        example.features.feature["label"].int64_list.value.append(label)
        writer.write(example.SerializeToString())
    writer.close()


# Sides: each returns an iterator of `batches` batches; 0 workers is this process.


def train_transform(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return transforms.flip(rng, transforms.area_crop(rng, image, size=SIZE))


def by_rn_jax(path: Path, *, batches: int, batch_size: int, workers: int):
    """Return batches of this project's feed."""
    records = imagenet.Records("benchmark", ArrayRecordDataSource(str(path)))
    source = imagenet.Source(
        parts={"train": records},
        batch_size=batch_size,
        seed=0,
        train_view=train_transform,
        eval_view=np.asarray,
        num_workers=workers,
    )
    return source.train_batches(0, batches)


def by_torch(path: Path, *, batches: int, batch_size: int, workers: int):
    """Return batches of PyTorch's DataLoader, as in its ImageNet example."""
    import torch

    from benchmarks import torch_peer

    with torch_peer.importable_torchvision():
        from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )

    class Pictures(torch.utils.data.Dataset):
        """The records as transformed Pillow images."""

        source = ArrayRecordDataSource(str(path))  # its files are opened in the workers

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            encoded, label = parse_record(self.source[index])
            return transform(Image.open(io.BytesIO(encoded)).convert("RGB")), label

    torch.set_num_threads(1)
    pictures = Pictures()
    sampler = torch.utils.data.RandomSampler(
        pictures, replacement=True, num_samples=batches * batch_size
    )
    return iter(
        torch.utils.data.DataLoader(
            pictures, batch_size=batch_size, sampler=sampler, num_workers=workers
        )
    )


def by_tf_data(path: Path, *, batches: int, batch_size: int, workers: int):
    """Return batches of tf.data from bytes in memory, decoding only the window."""
    import tensorflow as tf

    source = ArrayRecordDataSource(str(path))
    jpegs = [parse_record(record)[0] for record in source]

    def transform(encoded):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4]),
            area_range=(0.08, 1),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = max(1, workers)
    dataset = (
        tf.data.Dataset.from_tensor_slices(jpegs)
        .shuffle(len(jpegs))
        .repeat()
        .map(transform, num_parallel_calls=max(1, workers))
        .batch(batch_size)
        .take(batches)
        .prefetch(2 if workers else 0)
        .with_options(options)
    )
    return dataset.as_numpy_iterator()


def time_feed(side, clock, *, batches: int, workers: int, **options):
    """Return the seconds to the first batch, and per picture after a warm-up."""
    start = time.perf_counter()
    warmup = 1 + 2 * workers
    feed = side(batches=warmup + batches, workers=workers, **options)
    next(feed)
    first = time.perf_counter() - start
    for _ in range(warmup - 1):
        next(feed)
    start = clock()
    for _ in range(batches):
        next(feed)
    seconds = clock() - start
    for _ in feed:  # to its end, so that its workers end
        pass
    return {"first_batch": first, "picture": seconds / batches / options["batch_size"]}


def compare_feeds(sides, clock, rounds: int, **options) -> dict[str, object]:
    """Return medians over alternating rounds, and ratios to this project."""
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(time_feed(side, clock, **options))
    seconds = {name: [f["picture"] for f in found[name]] for name in sides}
    return {
        "pictures_per_second": {
            name: 1 / statistics.median(values) for name, values in seconds.items()
        },
        "seconds_to_first_batch": {
            name: statistics.median(f["first_batch"] for f in found[name])
            for name in sides
        },
        "rate_over_peer": {
            name: measure.ratio(values, seconds["rn_jax"])
            for name, values in seconds.items()
            if name != "rn_jax"
        },
    }


# Decoders


def by_pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def by_pillow_draft(encoded: bytes) -> np.ndarray:
    """Decode at the smallest JPEG scale with a shorter side of at least 256."""
    image = Image.open(io.BytesIO(encoded))
    image.draft("RGB", (256, 256))
    return np.asarray(image.convert("RGB"))


def decoders(jpegs: list[bytes]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the decoders that work here by name, and why the others do not."""
    found = {
        "opencv": transforms.decode_jpeg,
        "pillow": by_pillow,
        "pillow_draft": by_pillow_draft,
    }
    absent = {}
    for name, make in (("simplejpeg", _simplejpeg), ("torchvision", _torchvision)):
        try:
            decode = make()
            decode(jpegs[0])
        except (ImportError, RuntimeError) as error:
            absent[name] = str(error).splitlines()[0]
        else:
            found[name] = decode
    return found, absent


def _simplejpeg():
    import simplejpeg

    return simplejpeg.decode_jpeg


def _torchvision():
    import torch

    from benchmarks import torch_peer

    with torch_peer.importable_torchvision():
        from torchvision.io import ImageReadMode, decode_jpeg

    def decode(encoded):
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return decode_jpeg(data, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def compare_decoders(jpegs: list[bytes], rounds: int) -> dict[str, object]:
    """Return milliseconds of processor time per picture, and errors of pixels."""
    found, absent = decoders(jpegs)
    seconds = {name: [] for name in found}
    for _ in range(rounds):
        for name, decode in found.items():
            start = time.process_time()
            for encoded in jpegs:
                decode(encoded)
            seconds[name].append((time.process_time() - start) / len(jpegs))
    expected = by_pillow(jpegs[0]).astype(np.int32)
    return {
        "milliseconds": {
            name: 1000 * statistics.median(values) for name, values in seconds.items()
        },
        "time_over_opencv": {
            name: measure.ratio(values, seconds["opencv"])
            for name, values in seconds.items()
            if name != "opencv"
        },
        "largest_difference_to_pillow": {
            name: int(np.abs(decode(jpegs[0]) - expected).max())
            for name, decode in found.items()
            if decode(jpegs[0]).shape == expected.shape
        },
        "absent": absent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--quality", type=int, default=92, help="quality of the JPEGs")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--batches", type=int, default=32, help="timed batches in a round"
    )
    parser.add_argument("--workers", type=int, default=parallel.cpu_cores())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", choices=("torch",))
    options = parser.parse_args()
    cv2.setNumThreads(0)  # as in the workers

    sides, absent = {"rn_jax": by_rn_jax}, []
    if options.peer:
        sides["torch"] = by_torch
    if importlib.util.find_spec("tensorflow"):
        sides["tf.data"] = by_tf_data
    else:
        absent.append("tf.data: TensorFlow is not installed")

    jpegs = make_jpegs(options.pictures, options.quality)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.array_record"
        write_records(path, jpegs)
        feed = functools.partial(
            compare_feeds,
            sides,
            rounds=options.rounds,
            path=path,
            batch_size=options.batch_size,
            batches=options.batches,
        )
        in_process = feed(clock=time.process_time, workers=0)
        with_workers = feed(clock=time.perf_counter, workers=options.workers)
    per_core = {
        name: rate / options.workers
        for name, rate in with_workers["pictures_per_second"].items()
    }
    result = {
        **vars(options),
        "mean_kilobytes": statistics.mean(map(len, jpegs)) / 1000,
        "absent": absent,
        "in_process": in_process,
        "with_workers": {**with_workers, "pictures_per_second_and_worker": per_core},
        "decoders": compare_decoders(jpegs, options.rounds),
    }
    for kind, table in (("in process", in_process), ("with workers", with_workers)):
        for name, rate in table["pictures_per_second"].items():
            print(f"{kind}, {name}: {rate:.0f} pictures per second")
    for name, milliseconds in result["decoders"]["milliseconds"].items():
        print(f"decoding, {name}: {milliseconds:.2f} ms per picture")
    packages = ("grain", "opencv-python-headless", "pillow", "simplejpeg")
    packages += ("torch", "torchvision", "tensorflow", "tensorflow-cpu")
    print(measure.write("imagenet_feed", result, *packages))


if __name__ == "__main__":
    main()
