# SPDX-License-Identifier: Apache-2.0
"""Every field of an experiment, once, with the recipe of He et al. 2015 on CIFAR-10.

Not to be run itself: the other files here change what their paper has differently.
He et al. subtract the mean image alone. "mean_image" also divides by one number, to
which a network with BatchNorm after its first convolution is indifferent; on ImageNet
it does not, and its mean is that of a sample's centre crops, kept with the run.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

# Of the large data sets the examples to train on, and the least and most epochs of a
# recipe: 64,000 steps are 164 epochs of CIFAR and 6 of ImageNet, and 500 epochs of SVHN
# are twelve times the work of 500 of CIFAR. Huang et al. 2016 train for 50 epochs of
# SVHN; the longest recipe that was made for ImageNet, GoogLeNet's in Caffe, has 250.
_EPOCHS = {"svhn_cropped": (604_388, 10, 50), "imagenet2012": (1_281_167, 30, 250)}


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The defaults, for the data set named after the colon of --config=FILE:DATASET."""
    config = ConfigDict()

    # Network
    config.model = placeholder(str)  # a name of rn_jax.list_models()
    config.model_kwargs = ConfigDict()  # more of its fields, as {'shortcut': 'B'}
    config.stochastic_depth = placeholder(object)  # None, or {'last_survival': 0.5}
    config.stochastic_depth_from_epoch = 0  # epochs of constant depth before it begins
    config.dtype = "float32"  # of the computation: float32, bfloat16 or float16
    config.matmul_precision = placeholder(str)  # of float32 products: docs/recipes.md
    config.init_from = placeholder(str)  # run or file of weights; the head is new

    # Data
    config.dataset = dataset  # cifar10, cifar100, svhn_cropped, mnist, ..., digits
    config.data_dir = placeholder(str)  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.damaged_records = "stop"  # or skip: go on without them, said on stderr
    config.protocol = "full"  # full: train on all; 45k5k: hold out a tenth to validate
    config.split_seed = 0  # which examples are held out
    config.normalization = "mean_image"  # or another of data.NORMALIZATIONS
    config.augment = True  # zero-pad and crop, flip, and change colours
    config.augment_pad = placeholder(int)  # pixels; None: what suits the data set
    config.augment_flip = placeholder(bool)  # None: what suits the data set
    config.color_jitter = 0.0  # strength: 0.4 in fb.resnet.torch
    config.pca_noise = 0.0  # std: 0.1 in Krizhevsky et al. 2012

    # Data of imagenet2012 alone, which is decoded and cropped by worker processes
    config.train_crop = "area"  # of 8 to 100 %, and aspect; or scale: of a random size
    config.train_scales = (256, 480)  # shorter side before a crop of "scale", in pixels
    config.image_size = 224  # of the crops trained on, in pixels
    config.eval_resize = 256  # shorter side before the crops evaluated on
    config.eval_size = 224  # of the crops evaluated on
    config.eval_crops = "center"  # or ten: corners, centre, and their mirror images
    config.mean_image_examples = 10_000  # training images that mean_image is taken over
    config.num_workers = placeholder(int)  # processes; None: one per core

    # Length: whichever ends first
    config.epochs = placeholder(int)  # None: as many as `steps` allows
    config.steps = FieldReference(64_000)  # None: as many as `epochs` needs
    config.batch_size = 128  # over all devices
    config.eval_batch_size = 500  # over all devices; changes speed and memory only

    # Optimiser
    config.learning_rate = 0.1  # after the warm-up, before the first drop
    config.lr_schedule = "piecewise"  # or cosine, to 0 at the end; or plateau
    config.lr_drops = (32_000, 48_000)  # where the rate drops
    config.lr_drops_unit = "steps"  # steps, epochs, or fraction of the run's length
    config.lr_factor = 0.1  # by which a drop or a plateau multiplies the rate
    config.plateau_patience = 5  # evaluations without a lower validation error
    config.plateau_drops = 3  # at most so many
    config.warmup = 0.0  # how long the rate is warmup_learning_rate at the start
    config.warmup_unit = "steps"  # steps, epochs, or fraction of the run's length
    config.warmup_until_error = placeholder(float)  # percent in training; then warmup=0
    config.warmup_learning_rate = 0.01  # of He et al. 2015 for ResNet-110
    config.momentum = 0.9  # of the running sum of gradients
    config.momentum_form = "caffe"  # rate inside the velocity; or torch: outside of it
    config.nesterov = False  # True: Nesterov's momentum, as in the Torch codes
    config.weight_decay = 1e-4  # factor of the L2 penalty's gradient
    config.aux_loss_weight = 0.3  # of each auxiliary head's loss; GoogLeNet's alone
    config.weight_decay_on = "kernels"  # or all: BatchNorm's and biases too
    config.bias_rate = 1.0  # factor of the rate for biases; 2 in the Caffe codes
    config.micro_batches = 1  # parts of a batch, one after another, to save memory

    # Randomness and devices
    config.seed = 0  # of the parameters, the order of examples, augmentation and gates
    config.num_devices = placeholder(int)  # None: all; on a CPU one per core
    config.parallelism = "pmap"  # over devices; or shard_map: the same program
    config.batch_norm = "global"  # statistics over all devices; device: each its own
    config.batch_norm_at_test = "moving"  # averages; or exact: recomputed before a test
    config.batch_norm_examples = 10_000  # training examples for that

    # While it runs
    config.eval_every_epochs = 1  # evaluation and checkpoint; also at the end
    config.eval_every_steps = 0  # if not 0, evaluation by steps instead of epochs
    config.checkpoint_every_steps = 0  # more checkpoints between those; 0: none
    config.log_every_steps = 100  # lines of single steps in metrics.jsonl; 0: none
    config.compilation_cache = "~/.cache/rn_jax/compilation"  # "": no cache on disk

    # What the paper reports, for comparison only
    config.paper = "He et al. 2015"  # where the recipe comes from
    config.published_error_percent = ConfigDict()  # test error by data set
    config.expected_to_fail = False  # True: the paper's network does not train
    return config


def with_dataset(config: ConfigDict) -> ConfigDict:
    """Return the recipe adapted to its data set where the paper's would not do.

    `digits` has 1,437 images of 8x8 pixels: 22 steps an epoch. At the papers' rate of
    0.1 the deep networks do not begin to learn within a run of that size. On the large
    data sets a recipe has at least and at most as many epochs as `_EPOCHS` says; its
    drops and its warm-up in epochs move in proportion. Normalisation is one that the
    data set can have.
    """
    if config.dataset in _EPOCHS:
        _limit_epochs(config, *_EPOCHS[config.dataset])
    kind = config.normalization
    if config.dataset in ("mnist", "fashion_mnist") and kind.startswith("imagenet"):
        config.normalization = "channel"  # ImageNet's means are of three channels
    if config.dataset == "imagenet2012" and kind == "channel":
        config.normalization = "imagenet"  # the same, without all images in memory
    if config.dataset == "digits":
        config.epochs = 30
        config.steps = None
        config.batch_size = 64
        config.learning_rate = 0.01
        config.lr_drops = (0.5, 0.75)
        config.lr_drops_unit = "fraction"
        config.warmup = 0
        config.warmup_until_error = None
        config.normalization = "channel"
        config.protocol = "full"
        config.eval_every_steps = 0
        config.lr_schedule = "piecewise"
        config.batch_norm_at_test = "moving"
        config.momentum_form = "torch"  # as in the kept runs
    return config


def _limit_epochs(config, num_train, least, most):
    steps_per_epoch = num_train // config.batch_size
    lengths = [config.epochs, config.steps and config.steps / steps_per_epoch]
    epochs = min(length for length in lengths if length)
    ratio = min(max(epochs, least), most) / epochs
    if ratio == 1:
        return
    if config.epochs:
        config.epochs = round(config.epochs * ratio)
    if config.steps:
        config.steps = round(config.steps * ratio)
    if config.lr_drops_unit == "epochs":
        config.lr_drops = tuple(drop * ratio for drop in config.lr_drops)
    if config.lr_drops_unit == "steps":
        config.lr_drops = tuple(round(drop * ratio) for drop in config.lr_drops)
    if config.warmup_unit == "epochs":
        config.warmup *= ratio
