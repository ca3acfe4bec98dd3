# SPDX-License-Identifier: Apache-2.0
"""What a run reports when it ends."""

import pytest

import configs
from configs.default import Config
from experiments.config import load_config
from experiments.training.evaluation import better
from experiments.training.summary import (
    divergence_sentence,
    evaluation_sentence,
    sentence,
    summarize,
    whole,
)


def line(epoch, **errors):
    return {"epoch": epoch, "train_loss": 1.0} | {
        f"{part}_error_percent": error for part, error in errors.items()
    }


def test_of_equal_validation_errors_the_last_is_the_best():
    assert better(None, line(1, test=9.0)) is None  # nothing is held out
    best = better(None, line(1, val=8.0, test=9.0))
    assert best == {"epoch": 1, "val_error_percent": 8.0, "test_error_percent": 9.0}
    assert better(best, line(2, val=8.5, test=7.0)) is None
    assert better(best, line(3, val=8.0, test=7.0))["epoch"] == 3


def test_summary_and_sentence():
    config = Config(model="resnet20", published_error_percent={"cifar10": 8.75})
    last = line(3, val=8.0, test=9.5)
    best = better(None, line(2, val=7.0, test=9.0))
    summary = summarize({"dataset": "cifar10"}, last, best, None)
    assert summary["test_error_percent"] == 9.5
    assert (summary["best_epoch"], summary["best_val_error_percent"]) == (2, 7.0)
    expected = "Test error 9.50 %, 9.00 % at the best validation epoch "
    assert sentence(config, summary) == f"{expected}(He et al. 2015: 8.75 %)."


@pytest.mark.parametrize(
    "typed, beside",
    [
        (["resnet20:digits"], ""),  # no paper trains on digits
        (["resnet20:cifar100"], ""),
        (["plain20"], " (He et al. 2015 has no published error for plain20)"),
        (["plain20:digits"], ""),
        (["resnet20", "--config.model=resnet32"], ""),  # the paper has one for it
        (["resnet20", "--config.model=wrn28_10"], ""),
        (["resnet20", "--config.epochs=1"], " (He et al. 2015: 8.75 %)"),
    ],
)
def test_only_where_an_error_might_be_expected_its_lack_is_mentioned(typed, beside):
    name, *others = typed
    file, _, dataset = name.partition(":")
    named = f"--config={configs.FOLDER / file}.py{dataset and f':{dataset}'}"
    _, config = load_config([named, *others])
    summary = summarize({"dataset": config.dataset}, line(1, test=9.0), None, None)
    assert sentence(config, summary) == f"Test error 9.00 %{beside}."


def test_sentences_of_an_evaluation_and_of_a_divergence():
    shown = "epoch 2: train loss 1.0000, val error 7.00 %, test error 9.00 %"
    assert evaluation_sentence(line(2, val=7.0, test=9.0)) == shown
    shown = divergence_sentence(3, 0.1, 2)
    assert "at step 3 (learning rate 0.1); the last good checkpoint, of step 2" in shown
    assert "(learning rate 5); there is no checkpoint" in divergence_sentence(
        1, 5, None
    )


def test_whole_epochs_are_integers():
    assert [whole(epochs) for epochs in (3.0, 2.6, 1 / 3)] == [3, 2.6, 0.33]
