"""R stays orthonormal: while training, after loading, and while training goes on."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Adafactor

from conftest import LAYERS, ORTHONORMAL, VOCAB, make_base
from pyreft import ReftConfig, ReftModel, get_reft_model
from pyreft.interventions import OrthonormalProjection, intervention_class
from pyreft.interventions.projection import turned_factor


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
    assert train(second) <= 1.00001 * reached  # it has converged by then
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


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_gradient_of_r_is_that_of_finite_differences(size):
    projection = OrthonormalProjection(7, 3, dtype=torch.float64)
    torch.manual_seed(0)
    hidden = torch.randn(4, 7, dtype=torch.float64)
    with torch.no_grad():
        projection.original.add_(torch.randn_like(projection.original))
        projection.turn.normal_(std=size) if size else None

    def run(turn):
        return torch.func.functional_call(projection, {"turn": turn}, (hidden,))

    assert torch.autograd.gradcheck(run, (projection.turn,))
    assert torch.autograd.gradgradcheck(run, (projection.turn,))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # torch's own use
def test_gradients_of_each_row_are_those_of_torch_func():
    intervention = intervention_class("loreft")(embed_dim=12, low_rank_dimension=3, dtype="float64")
    hidden = torch.randn(5, 12, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in intervention.named_parameters()}

    def loss(given, row):
        return torch.func.functional_call(intervention, given, (row,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, hidden)
    for index, row in enumerate(hidden):
        intervention.zero_grad()
        intervention(row).square().sum().backward()
        for name, parameter in intervention.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad)
    forward = torch.func.jacfwd(loss)(parameters, hidden[-1])
    torch.testing.assert_close(forward["rotate_layer.turn"], found["rotate_layer.turn"][-1])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_r_is_orthonormal_however_far_it_is_turned(size):
    projection = OrthonormalProjection(48, 6)
    torch.manual_seed(0)
    with torch.no_grad():
        projection.turn.normal_(std=size)
        projection.turn[:, 1] = projection.turn[:, 0]
    weight = projection.weight.detach().double()
    assert torch.linalg.matrix_norm(weight.mT @ weight - torch.eye(6), 2) <= 1e-6


# ---- it moves as under torch's parametrization ---------------------------------------------


class Householder(torch.nn.Module):
    """R^T under torch's parametrization, which upstream uses, from the same start."""

    def __init__(self, start):
        super().__init__()
        self.weight = torch.nn.Parameter(start.clone())


def pair(width=12, rank=4):
    """Ours and torch's, in float64, with coordinates in one basis of R^D."""
    torch.manual_seed(0)
    ours = OrthonormalProjection(width, rank, dtype=torch.float64)
    theirs = parametrizations.orthogonal(Householder(ours.weight.detach()))
    theirs.parametrizations.weight[0].base.copy_(basis(ours))
    return ours, theirs


@torch.no_grad()
def basis(projection):
    """The basis of R^D that X has its coordinates in: R^T, and where a quarter turn goes."""
    found = list(projection.weight.mT)
    for index in range(len(found), len(projection.original)):
        turn = torch.zeros_like(projection.original)
        turn[index, 0] = 1.0
        found.append(turned_factor(projection.original, turn)[:, 0])
    return torch.stack(found, 1)


def test_no_direction_of_the_hidden_state_is_a_coordinate():
    """As in torch's random basis: Adam would take large ones for as large as the others."""
    torch.manual_seed(0)
    width, rank = 256, 4
    found = basis(OrthonormalProjection(width, rank, dtype=torch.float64))
    torch.testing.assert_close(found.mT @ found, torch.eye(width, dtype=found.dtype))
    largest = found[:, rank:].abs().amax(1)  # of each direction
    random = torch.linalg.qr(torch.randn(width, width, dtype=found.dtype))[0].abs().amax(1)
    assert largest.max() <= 1.1 * random.max()


@pytest.mark.parametrize("size", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("rank", [1, 4, 11])
def test_r_and_its_gradient_are_those_of_torchs_parametrization(rank, size):
    ours, theirs = pair(rank=rank)
    original = theirs.parametrizations.weight.original
    with torch.no_grad():
        ours.turn.normal_(std=size) if size else None
        # Its diagonal are signs.
        original.copy_(ours.turn.tril(-1) + original.tril().triu())
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-12)
    wanted = torch.randn(12, rank, dtype=torch.float64)
    for module in (ours, theirs):
        (module.weight * wanted).sum().backward()
    torch.testing.assert_close(ours.turn.grad, original.grad, rtol=0, atol=1e-12)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.0),
    "adafactor": lambda parameters: Adafactor(
        parameters, lr=4e-3, scale_parameter=False, relative_step=False
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_take_r_where_they_take_torchs(name):
    ours, theirs = pair()
    hidden, target = torch.randn(2, 64, 12, dtype=torch.float64)
    losses = []
    for module in (ours, theirs):
        optimizer = OPTIMIZERS[name](module.parameters())
        losses.append([])
        for _ in range(300):
            optimizer.zero_grad()
            weight = module.weight
            loss = (hidden @ weight @ weight.mT - target).square().mean(0).sum()
            loss.backward()
            losses[-1].append(loss.item())
            optimizer.step()
    assert losses[0][-1] < losses[0][0] - 0.1
    # Adafactor computes in float32.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if name == "adafactor" else 1e-6)


def test_weight_decay_pulls_r_to_where_it_started():
    """Under torch's parametrization the same step makes R zero."""
    ours, theirs = pair()
    with torch.no_grad():
        ours.turn.normal_(std=0.1)
    far = (ours.weight - ours.original).norm().item()
    distances = []
    for module in (ours, theirs):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=1.0)
        for _ in range(5):
            optimizer.zero_grad()
            (0 * module.weight).sum().backward()
            optimizer.step()
        distances.append((module.weight - ours.original).norm().item())
    assert 0.1 < distances[0] < 0.9 * far
    assert not theirs.weight.any()


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
    trained = {n: tensor for n, tensor in saved.items() if not n.endswith(".original")}
    assert sum(tensor.numel() for tensor in trained.values()) == model.count_parameters()
    assert max(tensor.numel() for tensor in saved.values()) <= 128 * 2
