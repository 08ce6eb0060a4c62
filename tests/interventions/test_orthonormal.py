"""R stays orthonormal: while training, after loading, and while training goes on."""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import LAYERS, ORTHONORMAL, VOCAB, make_base
from pyreft import ReftConfig, ReftModel, get_reft_model
from pyreft.interventions import OrthonormalProjection, intervention_class


@pytest.fixture(params=ORTHONORMAL)
def orthonormal(request):
    """A kind whose R is orthonormal."""
    return request.param


def error(intervention):
    """||R R^T - I||, the largest entry's and the spectral norm's size, in float64."""
    weight = intervention.rotate_layer.weight.detach().double()
    return torch.linalg.matrix_norm(weight.mT @ weight - torch.eye(weight.shape[1]), 2).item()


def train(intervention, steps=200, width=48):
    torch.manual_seed(0)
    hidden, target = torch.randn(2, 16, width)
    optimizer = torch.optim.Adam(intervention.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (intervention(hidden) - target).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def batch():
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (4, 12))
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(12) < 8, -100)}


def train_model(model, steps=200):
    optimizer = torch.optim.Adam(model.interventions.parameters(), lr=1e-2)
    inputs = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("rank", [1, 8, 48])
def test_r_is_orthonormal_after_200_steps_of_adam(orthonormal, rank):
    intervention = intervention_class(orthonormal)(embed_dim=48, low_rank_dimension=rank)
    before = intervention.rotate_layer.weight.detach().clone()
    assert error(intervention) <= 1e-6
    train(intervention)
    assert error(intervention) <= 1e-6
    assert (intervention.rotate_layer.weight - before).abs().max() > 1e-2


def test_r_is_orthonormal_after_loading_its_state_and_200_more_steps(orthonormal):
    first = intervention_class(orthonormal)(embed_dim=48, low_rank_dimension=6)
    reached = train(first)
    second = intervention_class(orthonormal)(embed_dim=48, low_rank_dimension=6)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.rotate_layer.weight, first.rotate_layer.weight)
    assert train(second) <= reached
    assert error(second) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_keeps_r_orthonormal_through_training_saving_and_resuming(dtype, tmp_path):
    model = get_reft_model(make_base("llama").to(dtype), ReftConfig(layers=[1], rank=4))
    train_model(model)
    intervention = next(iter(model.interventions.values()))
    assert error(intervention) <= 1e-6
    model.save_pretrained(tmp_path)

    loaded = ReftModel.from_pretrained(make_base("llama").to(dtype), tmp_path)
    resumed = next(iter(loaded.interventions.values()))
    assert torch.equal(resumed.rotate_layer.weight, intervention.rotate_layer.weight)
    assert resumed.rotate_layer.weight.dtype == torch.float32
    train_model(loaded)
    assert error(resumed) <= 1e-6
    assert (resumed.rotate_layer.weight - intervention.rotate_layer.weight).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_r_is_orthonormal_in_float32_whatever_type_the_rest_has(orthonormal, dtype):
    intervention = intervention_class(orthonormal)(embed_dim=48, low_rank_dimension=6, dtype=dtype)
    assert intervention.rotate_layer.weight.dtype == torch.float32
    assert error(intervention) <= 1e-6


def test_a_model_that_is_cast_as_a_whole_keeps_r_orthonormal(orthonormal):
    intervention = intervention_class(orthonormal)(embed_dim=48, low_rank_dimension=6)
    intervention.to(torch.bfloat16)
    assert error(intervention) <= 1e-6
    hidden = torch.randn(2, 48, dtype=torch.bfloat16)
    assert intervention(hidden).dtype == torch.bfloat16


def test_float64_is_exact_to_float64(orthonormal):
    intervention = intervention_class(orthonormal)(
        embed_dim=48, low_rank_dimension=6, dtype="float64"
    )
    assert error(intervention) <= 1e-14


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_r_is_orthonormal_if_its_columns_are_nearly_parallel(scale):
    projection = OrthonormalProjection(48, 6)
    torch.manual_seed(0)
    with torch.no_grad():
        near = torch.randn(48, 1) + 1e-5 * torch.randn(48, 6)
        projection.original.copy_(scale * near)
    weight = projection.weight.detach().double()
    assert torch.linalg.matrix_norm(weight.mT @ weight - torch.eye(6), 2) <= 1e-6


def test_the_gradient_of_r_is_that_of_finite_differences():
    projection = OrthonormalProjection(7, 3, dtype=torch.float64)
    torch.manual_seed(0)
    hidden = torch.randn(4, 7, dtype=torch.float64)
    with torch.no_grad():
        projection.original.add_(torch.randn_like(projection.original))

    def run(original):
        return torch.func.functional_call(projection, {"original": original}, (hidden,))

    assert torch.autograd.gradcheck(run, (projection.original,))


def test_a_matrix_with_orthonormal_columns_can_be_set():
    projection = OrthonormalProjection(48, 6)
    torch.manual_seed(0)
    wanted = torch.linalg.qr(torch.randn(48, 6))[0]
    projection.weight = wanted
    assert (projection.weight - wanted).abs().max() <= 1e-6


# ---- no D x D ------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return made


def test_no_operation_makes_a_tensor_of_size_d_by_d(kind):
    width, rank = 512, 4
    with Largest() as largest:
        intervention = intervention_class(kind)(embed_dim=width, low_rank_dimension=rank)
        optimizer = torch.optim.Adam(intervention.parameters())
        intervention(torch.randn(2, 3, width)).sum().backward()
        optimizer.step()
    assert width * rank <= largest.size < width * width / 8


def test_an_adapter_saves_no_tensor_of_size_d_by_d(kind, tmp_path):
    base = make_base("gpt2", n_embd=128)
    model = get_reft_model(base, ReftConfig(kind=kind, rank=2))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "reft_model.safetensors")
    assert len(saved) >= 2 * LAYERS
    assert sum(tensor.numel() for tensor in saved.values()) == model.count_parameters()
    assert max(tensor.numel() for tensor in saved.values()) <= 128 * 2
