"""Products with frozen matrices are those of float64, and steps make them by oneDNN."""

from collections import Counter

import pytest
import torch
from reused import BASES, make_model, make_trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyreft.installed.products import onednn_multiplies
from pyreft.reuse.products import multiply, multiplying
from pyreft.training.chunks import PlainChunkedLoss

fast = pytest.mark.skipif(
    not onednn_multiplies.holds, reason="this CPU or torch has no product of oneDNN's"
)


class Products(TorchDispatchMode):
    """Counts the products of two matrices, by who makes them."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "_linear_pointwise"):
            self.calls["onednn" if name == "_linear_pointwise" else "torch"] += 1
        return func(*args, **(kwargs or {}))


def make_operands(x=(3, 5, 24), rows=16, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    tensors = [torch.randn(x), torch.randn(rows, x[-1]), torch.randn(rows) if bias else None]
    return [t if t is None else t.to(dtype) for t in tensors]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24), (2, 2, 3, 24), (0, 5, 24)])
def test_it_is_the_product_of_float64_and_so_is_the_gradient(shape, bias):
    x, weight, b = make_operands(shape, bias=bias)
    exact = [t if t is None else t.double() for t in (x, weight, b)]
    found, gradients = [], []
    for function, (one, *others) in [(multiply, (x, weight, b)), (nn.functional.linear, exact)]:
        one.requires_grad_()
        out = function(one, *others)
        found.append(out.double())
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        gradients.append(torch.autograd.grad((out * upstream).sum(), one)[0].double())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.transpose(0, 1), lambda x: x[:1].expand(4, -1, -1), lambda x: x[:, ::2]],
    ids=["transposed", "expanded", "with gaps"],
)
def test_tensors_need_not_be_contiguous(change):
    x, weight, b = make_operands()
    x = change(x)
    torch.testing.assert_close(multiply(x, weight, b), nn.functional.linear(x, weight, b))
    x = x.detach().requires_grad_()
    # The gradient of a sum is one number, expanded.
    (grad,) = torch.autograd.grad(multiply(x, weight, b).sum(), x)
    torch.testing.assert_close(grad, weight.sum(0).expand_as(x))
    turned = weight.T.contiguous().T
    torch.testing.assert_close(multiply(x, turned), nn.functional.linear(x, turned))


@fast
def test_gradients_have_gradients():
    x, weight, b = make_operands()
    scale = torch.tensor(2.0, requires_grad=True)
    x.requires_grad_()
    (grad,) = torch.autograd.grad((multiply(x, weight, b) * scale).sum(), x, create_graph=True)
    (of_scale,) = torch.autograd.grad(grad.sum(), scale)
    torch.testing.assert_close(of_scale, weight.sum() * 15)


@fast
@pytest.mark.parametrize("case", ["frozen", "trained", "double", "bfloat16", "autocast", "class"])
def test_what_is_not_a_frozen_matrix_of_float32_is_left_to_torch(case):
    dtypes = {"double": torch.float64, "bfloat16": torch.bfloat16}
    x, weight, b = make_operands(dtype=dtypes.get(case, torch.float32))
    weight.requires_grad_(case == "trained")
    if case == "class":
        weight = weight.as_subclass(type("Packed", (torch.Tensor,), {}))
    with torch.autocast("cpu", enabled=case == "autocast"), Products() as counted:
        found = multiply(x.requires_grad_(), weight, b)
    expected = nn.functional.linear(x, weight, b)
    assert ("onednn" in counted.calls) == (case == "frozen")
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-2, atol=5e-2)
    if case == "trained":
        assert torch.autograd.grad(found.sum(), weight)[0].abs().max() > 0


@fast
@pytest.mark.parametrize("name", BASES)
def test_a_step_makes_no_other_product_with_a_frozen_matrix(tmp_path, name):
    model = make_model(name)
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    edit = sum(p.requires_grad for p in model.parameters())
    with Products() as counted:
        trainer.training_step(model, batch)
    # Seven maps (four in GPT-2) of the one layer that runs, forward and backward.
    assert counted.calls["onednn"] >= 2 * (4 if name == "gpt2" else 7)
    # R, its QR factor and what is learned are not frozen.
    assert counted.calls["torch"] <= 4 * edit, counted.calls


@pytest.mark.parametrize(("learns", "products"), [(True, 10), (False, 5)])
def test_an_evaluation_makes_the_logits_alone(learns, products):
    """Of five tiles of ten words each."""
    _, weight, _ = make_operands(rows=50)
    with Products() as counted:
        PlainChunkedLoss.apply(weight, learns, torch.tensor([7, 49]), 2, 10, torch.randn(2, 24))
    assert counted.calls.total() == products


@fast
def test_the_model_is_what_it_was_behind_the_block():
    model = make_model()
    base, head = model.model, model.model.get_output_embeddings()
    with multiplying(base):
        assert "forward" in vars(base.model.layers[0].mlp.up_proj)
        assert "forward" not in vars(head)
    assert not any("forward" in vars(module) for module in base.modules())


@fast
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_what_is_run_again_in_backward_is_left_alone(tmp_path):
    """Checkpointed layers run a second time behind the block, where they must do the same."""
    model = make_model()
    model.model.gradient_checkpointing_enable()
    make_trainer(model, tmp_path, max_steps=2).train()
    with multiplying(model.model):
        assert "forward" not in vars(model.model.model.layers[0].mlp.up_proj)
