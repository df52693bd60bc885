"""The reward of `align_digits.yaml`: the log-probability that an image shows a three, by a small classifier."""

import torch

from experiments.problems.digits_classifier import WEIGHTS, DigitClassifier

classifier = DigitClassifier.load(WEIGHTS)


def three(images, prompts):  # noqa: ARG001  digits have no prompts
    return torch.log_softmax(classifier.logits(images), dim=1)[:, 3]
