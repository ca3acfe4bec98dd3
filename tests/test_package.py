# SPDX-License-Identifier: Apache-2.0
"""What `import rn_jax` brings, and what it does not."""

import ast
import configparser
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rn_jax
from rn_jax import optim

ROOT = Path(__file__).parents[1]
HEAVY = (
    "PIL",
    "array_record",
    "cv2",
    "grain",
    "matplotlib",
    "ml_collections",
    "optax",
    "huggingface_hub",
    "orbax",
    "plotly",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
)
# Our extras, and JAX's: "cuda" is the newest CUDA that the installed JAX has.
ACCELERATORS = {"cuda": "cuda13", "cuda12": "cuda12", "cuda13": "cuda13", "tpu": "tpu"}


def _setup_cfg():
    settings = configparser.ConfigParser(inline_comment_prefixes="#")
    settings.read(Path(__file__).parents[1] / "setup.cfg")
    return settings


def test_importing_needs_only_jax_and_flax():
    root = str(Path(rn_jax.__file__).parents[1])
    code = f"import sys, rn_jax; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_beside_a_clone_that_has_the_package_s_name(tmp_path):
    """An editable install is found before the clone's folder, which has no module."""
    (tmp_path / "rn_jax").mkdir()
    env = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    code = "import rn_jax, experiments; print(rn_jax.load.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "load\n"


def test_public_names_are_there():
    assert sorted(rn_jax.__all__) == list(rn_jax.__all__)
    for name in rn_jax.__all__:
        assert getattr(rn_jax, name).__doc__


def test_names_of_earlier_versions():
    assert rn_jax.test_gates is rn_jax.eval_gates
    assert optim.Feedback is optim.RateController


def test_extras_for_accelerators():
    """pip only warns of an unknown extra and would install the CPU's JAX."""
    extras = _setup_cfg()["options.extras_require"]
    asked = {name: Requirement(extras[name].strip()) for name in ACCELERATORS}
    assert all(requirement.name == "jax" for requirement in asked.values())
    for name, requirement in asked.items():
        assert requirement.extras == {ACCELERATORS[name]}
    of_jax = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    releases = [name for name in of_jax if re.fullmatch(r"cuda\d+", name)]
    assert ACCELERATORS["cuda"] == max(releases, key=lambda name: int(name[4:]))


def _requirements(*extras):
    """What setup.cfg names for the library and for some extras."""
    settings = _setup_cfg()
    named = [settings["options"]["install_requires"]]
    named += [settings["options.extras_require"][name] for name in extras]
    every = map(Requirement, filter(None, "\n".join(named).split("\n")))
    return [requirement for requirement in every if requirement.name != "rn_jax"]


# What is imported when it is asked for, with a sentence that names it.
OPTIONAL = {"cv2", "grain", "huggingface_hub", "jax2onnx", "torch"}


def test_the_extra_train_has_what_the_commands_import():
    ours = {"rn_jax", "experiments", "configs"}
    imported = set()
    for file in itertools.chain(*((ROOT / name).rglob("*.py") for name in ours)):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    imported -= ours | OPTIONAL | sys.stdlib_module_names
    named = {canonicalize_name(found.name) for found in _requirements("train")}
    named.add("numpy")  # through jax
    packages = importlib.metadata.packages_distributions()
    for module in imported:
        assert named & set(map(canonicalize_name, packages[module])), module


def _pinned(name):
    """The versions in a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def _bounds():
    """The least version of each package, as setup.cfg has them."""
    bounds = {}
    for requirement in _requirements("train", "imagenet"):
        [bound] = requirement.specifier
        assert bound.operator == ">=", requirement
        bounds[canonicalize_name(requirement.name)] = Version(bound.version)
    return bounds


def test_constraints_min_are_the_bounds_of_setup_cfg():
    """`make test-min` runs with exactly the versions that setup.cfg allows at least."""
    pinned, bounds = _pinned("constraints-min.txt"), _bounds()
    assert pinned.pop("jaxlib") == pinned["jax"]
    assert pinned.pop("numpy").major == 2  # through jax
    assert set(pinned) == set(bounds)
    for name, bound in bounds.items():
        assert pinned[name].release[: len(bound.release)] == bound.release, name


def test_setup_cfg_allows_the_versions_of_colab():
    pinned, bounds = _pinned("constraints-colab.txt"), _bounds()
    assert pinned.pop("jaxlib") == pinned["jax"]
    assert set(pinned) == {"jax", "flax"}
    for name, version in pinned.items():
        assert version >= bounds[name]


def test_a_program_of_ones_own_keeps_its_signals(tmp_path):
    """Also if Python imports rn_jax while it looks for the program's module."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("import rn_jax")
    (package / "train.py").write_text(
        "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mine.train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr
