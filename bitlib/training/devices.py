"""Where a network computes: TensorFlow's replicas, JAX's devices or PyTorch's one, by compiled steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import KerasTensor as Tensor  # stands for a tensor of any backend
from keras import ops

from bitlib.ops import BACKEND

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax


def forward(model: keras.Model, function: Callable | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from images float32 `[N, H, W, 3]` to what a model makes of them, a float32 array.

    Args:
        function: that calls the model on a tensor of images; None for the model itself.
    """
    compute = function or model
    if BACKEND == "tensorflow":
        signature = [tf.TensorSpec((None, None, None, 3), tf.float32)]
        traced = tf.function(lambda images: tf.cast(compute(images), tf.float32), input_signature=signature)
        return lambda images: traced(images).numpy()
    if BACKEND == "torch":
        import torch

        def plain(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return ops.convert_to_numpy(ops.cast(compute(ops.convert_to_tensor(images)), "float32"))

        return plain

    @jax.jit
    def stateless(values, images):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return ops.cast(compute(images), "float32")

    most = 0  # JAX compiles anew for each shape: fewer images are filled up to as many as there were

    def padded(images: np.ndarray) -> np.ndarray:
        nonlocal most
        count, shares = len(images), _shares()
        most = max(most, -(-count // shares) * shares)
        images = np.pad(images, ((0, most - count), (0, 0), (0, 0), (0, 0)))
        result = stateless([v.value for v in model.variables], _placed(images))
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import process_allgather

            result = process_allgather(result, tiled=True)
        return np.asarray(result)[:count]

    return padded


def _shares() -> int:
    """How many parts JAX's devices take a batch in, as Keras' distribution says."""
    if (distribution := keras.distribution.distribution()) is None:
        return 1
    layout = distribution.get_data_layout((1, 1, 1, 1))
    return dict(zip(layout.device_mesh.axis_names, layout.device_mesh.shape, strict=True))[layout.axes[0]]


def _placed(values: np.ndarray, whole: bool = True) -> Any:
    """An array, shared by JAX's devices; it is that of all machines together, or this one's part of it."""
    if (distribution := keras.distribution.distribution()) is None:
        return values
    layout = distribution.get_data_layout(values.shape)
    if whole:
        return keras.distribution.distribute_tensor(values, layout)
    return jax.make_array_from_process_local_data(layout.backend_layout, values)


class Training(NamedTuple):
    """What a step computes: the arguments of `bitlib.training.loop.train_step`."""

    loss_of: Callable
    optimizer: keras.optimizers.Optimizer
    variables: Sequence[keras.Variable]
    models: Sequence[keras.Model]
    accumulate: int
    clip: float | None


class Devices:
    """What a training computes on; this one is PyTorch's, on one device.

    Attributes:
        machines, index: how many processes train together, and which of them this is.
        chief: whether this process writes files.
    """

    machines, index, chief = 1, 0, True

    def scope(self) -> AbstractContextManager:
        """Where the optimizer is made."""
        return nullcontext()

    def distributed(self, batches: Iterable[tuple[np.ndarray, np.ndarray]], whole: bool) -> Iterator[tuple]:
        """Batches as tensors. `whole`: they are those of all machines together, not this one's shares."""
        for batch in batches:
            yield tuple(map(ops.convert_to_tensor, batch))

    def step(self, training: Training) -> Callable:
        """As `bitlib.training.loop.train_step`."""
        import torch

        loss_of, optimizer, variables, _, accumulate, clip = training

        def step(*batch):
            values, total, sums = [variable.value for variable in variables], 0.0, list[Tensor]()
            for part in _parts(batch, accumulate):
                loss = loss_of(*part)
                grads = torch.autograd.grad(optimizer.scale_loss(loss), values, materialize_grads=True)
                total += float(loss.detach())
                sums = [one + more for one, more in zip(sums, grads, strict=True)] if sums else list(grads)
            with torch.no_grad():
                optimizer.apply(_clipped(sums, clip), variables)
            return total

        return step


class JaxDevices(Devices):
    """JAX's, shared as `keras.distribution` says: each has the weights, and its rows of a batch."""

    def __init__(self):
        self.machines, self.index = jax.process_count(), jax.process_index()
        self.chief = self.index == 0

    def distributed(self, batches: Iterable, whole: bool) -> Iterator[tuple]:
        for batch in batches:
            yield tuple(_placed(values, whole) for values in batch)

    def step(self, training: Training) -> Callable:
        loss_of, optimizer, variables, models, accumulate, clip = training
        trained = {id(variable) for variable in variables}
        others = {id(v): v for model in models for v in model.variables if id(v) not in trained}
        rest = list(others.values())

        def loss_and_rest(values, others, state, *batch):
            known = [*zip(variables, values, strict=True), *zip(rest, others, strict=True)]
            known += zip(optimizer.variables, state, strict=True)
            with keras.StatelessScope(state_mapping=known) as scope:
                loss = loss_of(*batch)
                scaled = optimizer.scale_loss(loss)
            return scaled, (loss, [scope.get_current_value(variable) for variable in rest])

        gradients = jax.jit(jax.grad(loss_and_rest, has_aux=True))
        add = jax.jit(lambda one, other: jax.tree.map(ops.add, one, other))

        @jax.jit
        def update(values, state, grads):
            return optimizer.stateless_apply(state, _clipped(grads, clip), values)

        def step(*batch):
            values = [variable.value for variable in variables]
            now, state = [v.value for v in rest], [v.value for v in optimizer.variables]
            total, sums = 0.0, None
            for part in _parts(batch, accumulate):
                grads, (loss, now) = gradients(values, now, state, *part)
                total, sums = total + loss, grads if sums is None else add(sums, grads)
            values, state = update(values, state, sums)
            for variable, value in zip(
                [*variables, *rest, *optimizer.variables], [*values, *now, *state], strict=True
            ):
                variable.assign(value)
            return total

        return step


class Replicas(Devices):
    """TensorFlow's, of the strategy that a model was made in; they share each batch."""

    def __init__(self, strategy: Any):
        self.strategy, self.replicas = strategy, strategy.num_replicas_in_sync
        numbers = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(context.replica_id_in_sync_group)
        )
        self.own = [int(number) for number in strategy.experimental_local_results(numbers)]
        self.machines, self.index = self.replicas // len(self.own), self.own[0] // len(self.own)
        self.chief = self.index == 0

    def scope(self) -> AbstractContextManager:
        return self.strategy.scope()

    def distributed(self, batches: Iterable, whole: bool) -> Iterator[tuple]:
        first, shares = (0, self.replicas) if whole else (self.own[0], len(self.own))
        for batch in batches:
            if self.replicas == 1:
                yield tuple(map(tf.constant, batch))
                continue
            rows = len(batch[0]) // shares

            def share(context, batch=batch, rows=rows):
                start = (context.replica_id_in_sync_group - first) * rows
                return tuple(tf.constant(values[start : start + rows]) for values in batch)

            yield self.strategy.experimental_distribute_values_from_function(share)

    def step(self, training: Training) -> Callable:
        loss_of, optimizer, variables, _, accumulate, clip = training
        values = [variable.value for variable in variables]

        def gradients(*batch):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                loss = loss_of(*batch)
                scaled = optimizer.scale_loss(loss)
            return loss, tape.gradient(scaled, values)

        def accumulated(*batch):
            if accumulate == 1:
                return gradients(*batch)
            count = tf.shape(batch[0])[0]
            size = -(-count // accumulate)

            def add(part, loss, sums):
                rows = slice(part * size, (part + 1) * size)
                more, grads = gradients(*(values[rows] for values in batch))
                return part + 1, loss + more, [total + grad for total, grad in zip(sums, grads, strict=True)]

            # One part after the other: side by side they would need the memory that this is to save.
            _, loss, sums = tf.while_loop(
                lambda part, *_: part * size < count,
                add,
                (tf.constant(0), tf.constant(0.0), [tf.zeros(value.shape) for value in values]),
                parallel_iterations=1,
            )
            return loss, sums

        def replica_step(*batch):
            loss, grads = accumulated(*batch)
            if clip is not None:
                replica = tf.distribute.get_replica_context()
                grads = _clipped(replica.all_reduce(tf.distribute.ReduceOp.SUM, grads), clip)
                grads = [gradient / replica.num_replicas_in_sync for gradient in grads]
            optimizer.apply(grads, variables)  # sums them over replicas
            return loss

        @tf.function
        def step(*batch):
            losses = self.strategy.run(replica_step, args=batch)
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        return step


_UNEQUAL = "plan: batch_size {} cannot be shared equally by the {}"


def devices_of(model: keras.Model, batch_size: int) -> Devices:
    """What a model computes on: TensorFlow's strategy that it was made in, or the one whose scope we are in.

    Raises:
        ValueError: it was made outside the scope, or its replicas or devices cannot share a batch equally.
    """
    if BACKEND == "torch":
        return Devices()
    if BACKEND == "jax":
        if batch_size % (shares := _shares()):
            raise ValueError(_UNEQUAL.format(batch_size, f"{shares} devices of JAX"))
        return JaxDevices()
    owner = getattr(model.variables[0].value, "distribute_strategy", None)
    strategy = owner or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if owner is None and replicas > 1:
        raise ValueError("model: made outside the strategy's scope; load it within `with strategy.scope():`")
    if batch_size % replicas:
        raise ValueError(_UNEQUAL.format(batch_size, f"{replicas} replicas of the strategy"))
    return Replicas(strategy)


def _parts(batch: tuple, accumulate: int) -> Iterator[tuple]:
    """A batch in at most so many parts of equal size, but for the last."""
    size = -(-len(batch[0]) // accumulate)
    for start in range(0, len(batch[0]), size):
        yield tuple(values[start : start + size] for values in batch) if accumulate > 1 else batch


def _clipped(gradients: Sequence[Tensor], norm: float | None) -> list[Tensor]:
    """Gradients, shrunk together to a norm if they are longer."""
    if norm is None:
        return list(gradients)
    length = ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients))
    factor = norm / ops.maximum(length, norm)
    return [gradient * ops.cast(factor, gradient.dtype) for gradient in gradients]
