"""A user's function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from oracles.errors import OracleError


@dataclass(frozen=True)
class FunctionReward:
    """Any function of images (n, channels, height, width) in 0 … 1 and their n prompts that gives n numbers."""

    function: Callable[[Tensor, Sequence[str]], Tensor]
    is_differentiable: bool = True
    """Whether gradients pass through it; guidance needs them."""
    reads_prompt: bool = False
    """Whether it answers otherwise for another prompt: an oracle of such a reward needs one, and a campaign all images
    of one prompt."""
    name: str = "function"

    def __call__(self, images: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return what the function answers.

        Raises OracleError unless that is one floating point number an image, and when the function raises; but not for
        a GPU whose memory is full, which fewer images at a time may mend.
        """
        try:
            answer = self.function(images, prompts)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise OracleError(f"the reward {self.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(answer, Tensor) or answer.shape != (len(images),) or not answer.is_floating_point():
            came = (
                f"{answer.dtype} of shape {tuple(answer.shape)}"
                if isinstance(answer, torch.Tensor)
                else f"a {type(answer).__name__}"
            )
            raise OracleError(
                f"the reward {self.name} must return a tensor of {len(images)} floating point numbers, got {came}"
            )
        return answer
