"""Cost of a piece of training, counted without running it: memory as the allocator would see it,
operations, and bytes that are read and written.

Tensors are torch's fake ones: they have shapes, types and storages, and no values. Every operator of the real
step is called on them, in the real order, and a storage is given back when the real one would be, so that the
largest sum of living storages is the step's peak memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ...kernels.matmul import product


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a piece of work."""

    operations: float = 0.0
    """Multiplications and additions of matrix products, attention and convolutions."""
    moved: float = 0.0
    """Bytes that all other operators read and write."""

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.moved + other.moved)

    def __mul__(self, factor: float) -> Work:
        return Work(self.operations * factor, self.moved * factor)

    def seconds(self, speed: float, bandwidth: float) -> float:
        """Time at `speed` operations and `bandwidth` bytes a second, one after the other."""
        return self.operations / speed + self.moved / bandwidth


class Counter(TorchDispatchMode):
    """Counts what is called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = 0
        self.work = Work()
        self._storages: dict[int, weakref.ref] = {}

    def restart(self) -> None:
        """Forgets the peak and the work, not what is living."""
        self.peak, self.work = self.living, Work()

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor's storage for as long as it lives."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return
        self.living += size
        self.peak = max(self.peak, self.living)

        def freed(_: Any) -> None:
            self.living -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result in results:
            self.hold(result)
        if (found := operations_of(func, args, kwargs, out)) is not None:
            self.work += Work(operations=found)
        elif not func.is_view:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.work += Work(moved=float(sum(leaf.numel() * leaf.element_size() for leaf in read + results)))
        return out


def operations_of(func: Any, args: tuple, kwargs: Mapping[str, Any], out: Any) -> float | None:
    """Operations of a call as FlopCounterMode counts them; None for an operator that it does not count."""
    name = func._overloadpacket
    if name is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return float(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if name is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return float(sdpa_backward_flop_count(*(value.shape for value in args[:4])))
    if str(name) == "mkldnn._linear_pointwise":  # a product that `kernels.matmul` chooses
        return 2.0 * args[0].numel() * args[1].shape[0]
    rule = flop_registry.get(name)
    return None if rule is None else float(rule(*args, **kwargs, out_val=out))


@contextmanager
def counting() -> Iterator[Counter]:
    """Fake tensors and a counter of what is done with them, on the processor's own operators."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    product(torch.ones(1, 1), torch.ones(1, 1))  # looks at values once, to choose its kernel
    with FakeTensorMode(allow_non_fake_inputs=True), Counter() as counter:
        yield counter


def materialise(module: nn.Module) -> nn.Module:
    """Puts fake tensors in the place of a module's meta tensors, under `counting`; shared ones stay
    shared."""
    made: dict[int, Tensor] = {}

    def fake(value: Tensor) -> Tensor:
        if id(value) not in made:
            found = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            is_parameter = isinstance(value, nn.Parameter)
            made[id(value)] = nn.Parameter(found, value.requires_grad) if is_parameter else found
        return made[id(value)]

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: fake(value) for name, value in table.items() if value is not None})
    return module


def size_of(module: nn.Module, learning: bool | None = None) -> int:
    """Bytes of a module's parameters and buffers; `learning`: only of those that learn, or of the others."""
    tensors = {id(value): value for value in [*module.parameters(), *module.buffers()]}
    return sum(
        value.numel() * value.element_size()
        for value in tensors.values()
        if learning is None or value.requires_grad == learning
    )
