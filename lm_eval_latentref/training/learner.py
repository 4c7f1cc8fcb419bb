"""Optimiser steps on global batches, with any number of processes.

    learner = Learner(trainee, recipe=recipe, accelerator=Accelerator(), markers=markers)
    loss = learner.step(batch, learning_rate=1e-4)          # sum over the batch's labelled tokens
    num_correct = learner.num_correct(examples, latent_steps=3)

Each process computes its share of the batch, divided by the number of labelled tokens of the whole
batch. Gradients are then summed over processes, without a wrapper around the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind
from lm_eval_latentref.latent.protocol import Example, extract_answer, prompt
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.training.curriculum import Row, micro_batches, share
from lm_eval_latentref.training.loss import loss_sum, num_labelled
from lm_eval_latentref.training.models import Trainee
from lm_eval_latentref.training.recipe import Recipe

BETA1 = 0.9
"""AdamW's default; beta2 is a field of the recipe."""


class Learner:
    """A model in training with its optimiser.

    Args:
        trainee: the model; it is moved to the accelerator's device.
        markers: the marker tokens around the thoughts; None for a model without thoughts.
        kind: the kind of thoughts.
    """

    def __init__(
        self,
        trainee: Trainee,
        *,
        recipe: Recipe,
        accelerator: Accelerator,
        markers: Markers | None,
        kind: Kind = CONTINUOUS,
    ) -> None:
        trainee.model.to(accelerator.device)
        self.trainee = trainee
        self._recipe, self._accelerator = recipe, accelerator
        self._markers, self._kind = markers, kind
        self._network = trainee.network()
        self._weights = list(trainee.trained.values())
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Replaces the optimiser by a new one, without the moments of past gradients."""
        recipe = self._recipe
        self.optimizer = torch.optim.AdamW(
            self._weights,
            lr=recipe.learning_rate,
            betas=(BETA1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )

    def step(self, batch: Sequence[Row], *, learning_rate: float) -> float:
        """Makes one update; returns the loss before it, summed over `batch`'s labelled tokens.

        Args:
            batch: the global batch, the same in every process.

        Raises:
            LatentRefError: the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._sum_over_processes(self.backward(batch))
        if not math.isfinite(loss):
            raise LatentRefError(
                f"the training loss became {loss} at learning_rate={learning_rate:g}; lower it, "
                "add warmup_steps or use precision=fp32"
            )
        if self._recipe.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(
                self._weights, self._recipe.max_grad_norm, error_if_nonfinite=True
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def backward(self, batch: Sequence[Row]) -> Tensor:
        """Adds the gradient of this process's share of the mean loss.

        Returns:
            The share's loss, summed over its labelled tokens: a scalar.
        """
        num_tokens = num_labelled(batch)
        accelerator = self._accelerator
        rows = share(batch, accelerator.process_index, accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        max_rows = self._recipe.micro_batch_size or len(batch)
        for micro_batch in micro_batches(rows, max_rows, self._recipe.micro_batch_tokens):
            with self._autocast():
                loss = loss_sum(
                    micro_batch,
                    network=self._network,
                    markers=self._markers,
                    kind=self._kind,
                )
            (loss / num_tokens).backward()
            total += loss.detach()
        return total

    def num_correct(self, examples: Sequence[Example], *, latent_steps: int) -> int:
        """The number of exact matches of greedy answers, over all processes."""
        accelerator, size = self._accelerator, self._recipe.eval_batch_size
        model = self.trainee.model
        mine = sorted(examples, key=lambda example: len(example.question))
        mine = mine[accelerator.process_index :: accelerator.num_processes]
        reasoner = self.trainee.reasoner(self._config(latent_steps))
        correct = 0
        model.eval()
        with self._autocast():
            for start in range(0, len(mine), size):
                batch = mine[start : start + size]
                answers = reasoner.ask_all(
                    [example.question for example in batch],
                    max_new_tokens=self._recipe.max_new_tokens,
                )
                correct += sum(
                    answer.answer == extract_answer(example.answer)
                    for answer, example in zip(answers, batch, strict=True)
                )
        model.train()
        total = torch.tensor(correct, device=accelerator.device)
        return int(accelerator.reduce(total, reduction="sum"))

    def check_room(self, examples: Sequence[Example], *, latent_steps: int) -> None:
        """Raises LatentRefError if the longest of `examples` does not fit the model."""
        reasoner = self.trainee.reasoner(self._config(latent_steps))
        texts = [prompt(example.question) for example in examples]
        longest = max(self.trainee.tokenizer(texts)["input_ids"], key=len)
        reasoner.check_room(tuple(longest), self._recipe.max_new_tokens)

    @property
    def max_length(self) -> int | None:
        """The maximum number of columns that the model reads; None if it has no limit."""
        return self.trainee.reasoner(self._config(0)).max_length

    def _config(self, latent_steps: int) -> RefinementConfig:
        return RefinementConfig(latent_steps=latent_steps, latent_kind=self._kind.name)

    def _sum_over_processes(self, loss: Tensor) -> float:
        """Replaces the gradients by their sum over all processes; returns the sum of the losses."""
        if self._accelerator.num_processes == 1:
            return loss.item()
        for weight in self._weights:
            if weight.grad is None:  # a process may have no row of a small batch
                weight.grad = torch.zeros_like(weight)
        gradients: list[Any] = [weight.grad for weight in self._weights]
        flat = torch.cat([loss.reshape(1), *[gradient.flatten() for gradient in gradients]])
        flat = self._accelerator.reduce(flat, reduction="sum")
        parts = flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[0].item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._accelerator.device.type,
            dtype=torch.bfloat16,
            enabled=self._recipe.precision == "bf16",
        )
