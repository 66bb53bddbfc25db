"""A model whose products with weights are fast ones: `cpu_products`, `gpu_products`.

`accelerate` gives a model these products from outside; the model, its weights, their names and what
it computes stay the same.
"""

from contextlib import contextmanager

import torch
from torch import nn

from minisoft.engine.cpu_products import pack, product
from minisoft.engine.gpu_products import float32_product, gives_float32, stacked
from minisoft.model import MLP, Attention, Transformer


class FastLinear(nn.Linear):
    """nn.Linear by `product`."""

    copy = None  # stands in for the weight while that does not change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight if self.copy is None else self.copy, self.bias)

    def pack(self) -> None:
        self.copy = pack(self.weight)

    def unpack(self) -> None:
        self.copy = None


class Together:
    """A module whose `project` is several products of one input, which `packed` makes one."""

    matrix = None  # the weights of all of them, one below the other, and their biases
    bias = None
    kept = None  # where the biases lie

    def project(self, x: torch.Tensor) -> tuple:
        if self.matrix is None:
            return super().project(x)
        return product(x, self.matrix, self.bias).split([p.out_features for p in self.parts], -1)

    def pack(self) -> None:
        self.matrix = pack(stacked([part.weight for part in self.parts]))
        if self.parts[0].bias is not None:
            bias = torch.cat([part.bias.detach() for part in self.parts])
            if self.kept is None or self.kept.device != bias.device:
                self.kept = torch.empty_like(bias)
            self.bias = self.kept.copy_(bias)  # at one address: CUDA graphs have read it there
        self.alone.pack()

    def unpack(self) -> None:
        self.matrix = self.bias = None
        self.alone.unpack()


class FastAttention(Together, Attention):
    @property
    def parts(self) -> list[FastLinear]:
        return [self.q_proj, self.k_proj, self.v_proj]

    @property
    def alone(self) -> FastLinear:
        return self.o_proj


class FastMLP(Together, MLP):
    @property
    def parts(self) -> list[FastLinear]:
        return [self.gate_proj, self.up_proj]

    @property
    def alone(self) -> FastLinear:
        return self.down_proj


class FastTransformer(Transformer):
    """Transformer with fast products for W_d and E."""

    copies = None  # inside `packed` {"W_d", "E^T": a float32 copy, on CPUs, made when needed}
    slots = None  # what `minisoft.engine.decode` keeps on a GPU

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if gives_float32(self.W_d):
            return float32_product(hidden, self.W_d, is_packed(self))
        return product(hidden.float(), self._copy("W_d", self.W_d))

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        if gives_float32(self.E):
            return float32_product(p, self.E.t(), is_packed(self))
        return product(p, self._copy("E^T", self.E.t()))

    def _copy(self, name: str, W: torch.Tensor) -> torch.Tensor:
        """W, or on a CPU inside `packed` its copy."""
        if self.copies is None or W.is_cuda:
            return W
        if name not in self.copies:
            self.copies[name] = pack(W.float())
        return self.copies[name]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "slots": None}  # CUDA graphs cannot be copied

    def pack(self) -> None:
        self.copies = {}

    def unpack(self) -> None:
        self.copies = None


FAST = {nn.Linear: FastLinear, Attention: FastAttention, MLP: FastMLP, Transformer: FastTransformer}


def accelerate(model: Transformer) -> Transformer:
    """The same model, its products fast ones from now on."""
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))  # not built anew: it stays itself
        if isinstance(module, Together) and module.parts[0].weight.is_cuda:
            stacked([part.weight for part in module.parts])
    return model


def is_packed(model) -> bool:
    return getattr(model, "copies", None) is not None


@contextmanager
def packed(model: Transformer):
    """Inside, the weights must not change and nothing is differentiated: an accelerated model
    multiplies, on CPUs, by copies of its weights, laid out for it once, and everywhere does several
    products of one input as one."""
    modules = model.modules() if isinstance(model, FastTransformer) else []
    modules = [module for module in modules if isinstance(module, (Together, FastTransformer))]
    try:
        for module in modules:
            module.pack()
        yield
    finally:
        for module in modules:
            module.unpack()
