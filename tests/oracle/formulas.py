"""The six kinds in the oracle's own words: parameters, edits, and where pyreft keeps them.

kind       edit added to h            B
loreft     B^T (act(W h + b) - B h)   orthonormal rows
noreft     B^T (act(W h + b) - (B h + c))   any rows; c with add_bias
direft     B^T  act(W h + b)          orthonormal rows
nodireft   B^T  act(W h + b)          any rows
consreft   B^T (b - B h)              orthonormal rows
lobireft   B^T  b                     orthonormal rows
"""

import torch

KINDS = ["loreft", "noreft", "direft", "nodireft", "consreft", "lobireft"]
ORTHONORMAL = ["loreft", "direft", "consreft", "lobireft"]
CONSTANT = ["consreft", "lobireft"]
REPLACING = ["loreft", "noreft", "consreft"]
ACTIVATIONS = {
    None: lambda x: x,
    "linear": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
}


class Parameters:
    """The parameters of one intervention, leaves of autograd in float64.

    Args:
        kind, width, rank, act_fn, add_bias: Of the intervention.
        generator: What they are drawn with.
    """

    def __init__(self, kind, width, rank, act_fn, add_bias, generator):
        def random(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.kind, self.act = kind, ACTIVATIONS[act_fn]
        self.tensors = {"basis": random(rank, width) / width**0.5}
        if kind in ORTHONORMAL:
            self.tensors["basis"] = torch.linalg.qr(random(width, rank)).Q.T.contiguous()
        self.tensors["bias"] = random(rank)
        if kind not in CONSTANT:
            self.tensors["weight"] = random(rank, width) / width**0.5
        if kind == "noreft" and add_bias:
            self.tensors["shift"] = random(rank)
        for tensor in self.tensors.values():
            tensor.requires_grad_()

    def edit(self, hidden, directions=None):
        """What is added to hidden states, (..., D) -> (..., D), along some directions or all."""
        basis, bias = self.tensors["basis"], self.tensors["bias"]
        source = bias.expand(*hidden.shape[:-1], -1)
        if self.kind not in CONSTANT:
            source = self.act(torch.einsum("...d,rd->...r", hidden, self.tensors["weight"]) + bias)
        if self.kind in REPLACING:
            source = source - torch.einsum("...d,rd->...r", hidden, basis)
            source = source - self.tensors.get("shift", 0.0)
        if directions is not None:
            kept = torch.zeros(source.shape[-1], dtype=source.dtype)
            kept[list(directions)] = 1.0
            source = source * kept
        return torch.einsum("...r,rd->...d", source, basis)

    @torch.no_grad()
    def give(self, module):
        """Put them into an intervention of pyreft's."""
        if self.kind in ORTHONORMAL:
            module.rotate_layer.weight = self.tensors["basis"].T
            difference = module.rotate_layer.weight - self.tensors["basis"].T
            assert difference.abs().max() < 1e-12, "R is not what was set"
        else:
            module.proj_layer.weight.copy_(self.tensors["basis"])
        if "shift" in self.tensors:
            module.proj_layer.bias.copy_(self.tensors["shift"])
        if self.kind in CONSTANT:
            module.learned_source.copy_(self.tensors["bias"])
        else:
            module.learned_source.weight.copy_(self.tensors["weight"])
            module.learned_source.bias.copy_(self.tensors["bias"])

    def gradients(self, module):
        """Pairs of a parameter of pyreft's module and the gradient it must have."""
        grads = {
            name: torch.zeros_like(t) if t.grad is None else t.grad
            for name, t in self.tensors.items()
        }
        if self.kind in ORTHONORMAL:
            # What moves R is pyreft's choice; how R depends on it is asked of autograd.
            free = list(module.rotate_layer.parameters())
            weight = module.rotate_layer.weight
            pairs = list(
                zip(free, torch.autograd.grad(weight, free, grads["basis"].T), strict=True)
            )
        else:
            pairs = [(module.proj_layer.weight, grads["basis"])]
        if "shift" in grads:
            pairs.append((module.proj_layer.bias, grads["shift"]))
        if self.kind in CONSTANT:
            return [*pairs, (module.learned_source, grads["bias"])]
        source = module.learned_source
        return [*pairs, (source.weight, grads["weight"]), (source.bias, grads["bias"])]
