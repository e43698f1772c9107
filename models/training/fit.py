"""The training itself: stages of epochs, with what is needed to go on where a run has ended."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgindex.errors import UsageError
from imgindex.models.frameworks import settled_keras
from imgindex.models.training.datasets import Examples, batches, class_weights, epoch_order
from imgindex.models.training.methods import Stage
from imgindex.models.training.networks import Network, freeze
from imgindex.models.training.results import Epoch
from imgindex.models.training.split import TRAIN, VALIDATION
from imgindex.models.training.state import State, assign, values_of

logger = logging.getLogger(__name__)

# Share of a stage's steps in which the learning rate rises to its largest.
_WARMUP = 0.1


@dataclass
class Training:
    """A network that is trained by stages.

    Attributes:
        network: What is trained.
        stages: How.
        pixels: The images.
        embed: Gives the features of all images by the backbone as it is, as examples.
        batch_size: Images of a step.
        seed: Decides the order of the images, the augmentation and the dropout.
        save: Is given the state after each epoch and each stage.
        advance: Is told how many images an epoch has read.
    """

    network: Network
    stages: Sequence[Stage]
    pixels: Examples
    embed: Callable[[], Examples]
    batch_size: int
    seed: int
    save: Callable[[State], None]
    advance: Callable[[int], None]

    def run(self, state: State) -> None:
        """Goes on from `state`, which it changes, to the end of the last stage.

        The network has the weights of the last stage's best epoch then. Raises UsageError where the loss is
        no number any longer.
        """
        while state.stage < len(self.stages):
            self._run_stage(state)
        freeze(self.network, self.stages[-1].frozen)  # also where an earlier run has trained it
        assign(self.last_model().weights, state.current)

    def last_model(self) -> Any:
        """The model that the last stage trains."""
        return self._model(len(self.stages) - 1)

    def last_examples(self) -> Examples:
        """What it is trained on."""
        return self._examples(self.stages[-1])

    def _model(self, stage: int) -> Any:
        return self.network.classifier if self.stages[stage].on_features else self.network.whole

    def _examples(self, stage: Stage) -> Examples:
        return self.embed() if stage.on_features else self.pixels

    def _run_stage(self, state: State) -> None:
        stage, model = self.stages[state.stage], self._model(state.stage)
        examples = self._examples(stage)
        train = examples.parts[TRAIN]
        batch_size = min(self.batch_size, len(train))
        steps = -(-len(train) // batch_size)
        freeze(self.network, stage.frozen)
        with settled_keras() as keras:
            optimizer = compiled(keras, model, stage.learning_rate, steps * stage.epochs)
        if state.current:
            assign(model.weights, state.current)
        if state.optimizer:
            assign(optimizer.variables, state.optimizer)
        weights = class_weights(examples.classes[train], model.output_shape[-1])
        held_out = batches(examples, examples.parts[VALIDATION], batch_size)
        began = time.monotonic()
        while state.in_stage < stage.epochs and state.epochs_without_gain() < stage.patience:
            number = len(state.epochs) + 1
            reseed(model, self.seed, number)
            order = epoch_order(train, batch_size, self.seed, number)
            fed = batches(examples, order, batch_size, weights, self.advance)
            with settled_keras():
                fitted = model.fit(fed, epochs=1, verbose=0).history
                validated = model.evaluate(held_out, verbose=0, return_dict=True)
            now = time.monotonic()
            epoch = Epoch(
                number=number,
                loss=float(fitted["loss"][0]),
                accuracy=float(fitted["accuracy"][0]),
                validation_loss=float(validated["loss"]),
                validation_accuracy=float(validated["accuracy"]),
                seconds=now - began,
            )
            _check(epoch)
            _log(epoch, stage, state.in_stage + 1)
            began = now
            is_best = epoch.validation_loss < state.best_loss()
            state.epochs.append(epoch)
            state.in_stage += 1
            state.current = values_of(model.weights)
            state.optimizer = values_of(optimizer.variables)
            if is_best:
                state.best_epoch, state.best = number, state.current
            self.save(state)
        self._end_stage(state, model)

    def _end_stage(self, state: State, model: Any) -> None:
        assign(model.weights, state.best)
        state.stage += 1
        state.in_stage, state.optimizer = 0, []
        if state.stage < len(self.stages):
            state.current = values_of(self._model(state.stage).weights)
            state.best, state.best_epoch = [], 0
        else:
            state.current = state.best
        self.save(state)


def compiled(keras: Any, model: Any, learning_rate: float, steps: int) -> Any:
    """Prepares `model` for so many `steps` of training; gives its optimizer, whose variables are made."""
    warmup = round(_WARMUP * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else learning_rate,
        max(1, steps - warmup),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return optimizer


def reseed(model: Any, seed: int, epoch: int) -> None:
    """Has augmentation and dropout draw in an epoch what they draw in it in every run."""
    generators = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    drawn = np.random.default_rng((seed, epoch)).integers(1 << 31, size=(len(generators), 2))
    assign(generators, [values.astype(np.uint32) for values in drawn])


def _check(epoch: Epoch) -> None:
    if not (math.isfinite(epoch.loss) and math.isfinite(epoch.validation_loss)):
        raise UsageError(
            f"the loss is no number any longer after epoch {epoch.number}: give a lower --learning_rate, and "
            "another --output"
        )


def _log(epoch: Epoch, stage: Stage, in_stage: int) -> None:
    logger.info(
        "epoch %d of %d%s: loss %.3f, accuracy %.3f; validation: loss %.3f, accuracy %.3f; %.1f s",
        in_stage, stage.epochs, " of the classifier" if stage.on_features else "", epoch.loss, epoch.accuracy,
        epoch.validation_loss, epoch.validation_accuracy, epoch.seconds,
    )  # fmt: skip
