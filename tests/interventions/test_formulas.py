"""Each kind against its formula in numpy, in float64."""

import numpy
import pytest
import torch

from conftest import CONSTANT, KINDS
from pyreft.interventions import intervention_class

D, R = 24, 5


def make(kind, rank=R, **arguments):
    torch.manual_seed(0)
    made = intervention_class(kind)(embed_dim=D, low_rank_dimension=rank, **arguments)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made


def hidden(*shape, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(*shape, D, dtype=torch.float64).to(dtype)


def as_numpy(tensor):
    return tensor.detach().double().numpy()


ACTIVATIONS = {None: lambda x: x, "relu": lambda x: numpy.maximum(x, 0), "tanh": numpy.tanh}


def reference_edit(kind, intervention, base, act_fn=None, chosen=None):
    """h' - h, from the weights under upstream's names, as matrix products in float64."""
    h, act = as_numpy(base), ACTIVATIONS[act_fn]
    source = intervention.learned_source
    if kind in CONSTANT:
        b = as_numpy(source)
    else:
        target = act(h @ as_numpy(source.weight).T + as_numpy(source.bias))
    if kind in ("noreft", "nodireft"):
        rows = as_numpy(intervention.proj_layer.weight)
        bias = intervention.proj_layer.bias
        c = 0.0 if bias is None else as_numpy(bias)
    else:
        rows = as_numpy(intervention.rotate_layer.weight).T
        numpy.testing.assert_allclose(rows @ rows.T, numpy.eye(len(rows)), atol=1e-6)
    steps = {
        "loreft": lambda: target - h @ rows.T,
        "noreft": lambda: target - (h @ rows.T + c),
        "direft": lambda: target,
        "nodireft": lambda: target,
        "consreft": lambda: b - h @ rows.T,
        "lobireft": lambda: numpy.broadcast_to(b, (*h.shape[:-1], len(b))),
    }[kind]()
    if chosen is not None:
        steps = steps * chosen
    return steps @ rows


def assert_same(got, expected, tolerance=1e-10):
    numpy.testing.assert_allclose(as_numpy(got), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0,)])
@pytest.mark.parametrize("rank", [1, R, D])
def test_a_hidden_state_of_any_shape_and_rank_follows_the_formula(kind, shape, rank):
    intervention, base = make(kind, rank, dtype="float64"), hidden(*shape)
    edit = reference_edit(kind, intervention, base)
    assert not edit.size or abs(edit).max() > 0.1
    assert_same(intervention(base), as_numpy(base) + edit)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CONSTANT])
@pytest.mark.parametrize("act_fn", ["relu", "tanh"])
def test_an_activation_acts_on_the_learned_source_alone(kind, act_fn):
    intervention, base = make(kind, dtype="float64", act_fn=act_fn), hidden(2, 3)
    edit = reference_edit(kind, intervention, base, act_fn)
    assert_same(intervention(base), as_numpy(base) + edit)
    assert abs(edit - reference_edit(kind, intervention, base)).max() > 1e-3


def test_the_bias_of_the_projection_belongs_to_noreft_alone(kind):
    base, intervention = hidden(2, 3), make(kind, dtype="float64", add_bias=True)
    assert_same(intervention(base), as_numpy(base) + reference_edit(kind, intervention, base))
    names = [name for name, _ in intervention.named_parameters() if name == "proj_layer.bias"]
    assert len(names) == (kind == "noreft")


def test_the_input_is_not_changed(kind):
    base = hidden(2, 3)
    before = base.clone()
    make(kind, dtype="float64")(base)
    assert torch.equal(base, before)


# ---- types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hidden_state_keeps_its_type_and_is_edited_in_float32(kind, dtype):
    intervention, base = make(kind), hidden(2, 3, dtype=dtype)
    edited = intervention(base)
    assert edited.dtype == dtype
    expected = as_numpy(base) + reference_edit(kind, intervention, base)
    one_rounding = torch.finfo(dtype).eps * abs(expected).max()
    assert_same(edited, expected, one_rounding + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing_in_an_intervention(kind, dtype):
    intervention, base = make(kind), hidden(2, 3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = intervention(base)
    assert inside.dtype == dtype
    assert torch.equal(inside, intervention(base))


def test_the_input_under_autocast_may_be_of_either_type(kind):
    """Under autocast a block hands on float32 or bfloat16, as its last operation pleases."""
    intervention = make(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = torch.nn.Linear(D, D)(hidden(2, 3, dtype=torch.float32))
        edited = intervention(base)
        edited.float().sum().backward()
    assert base.dtype == edited.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in intervention.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_parameters_below_float32_give_a_close_edit_and_finite_gradients(kind, dtype):
    intervention, base = make(kind, dtype=dtype), hidden(2, 3, dtype=torch.float32)
    edited = intervention(base)
    assert edited.dtype == torch.float32
    assert_same(edited, as_numpy(base) + reference_edit(kind, intervention, base), 0.3)
    edited.sum().backward()
    for parameter in intervention.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_parameters_are_float32_unless_one_says_otherwise(kind):
    assert {p.dtype for p in make(kind).parameters()} == {torch.float32}


# ---- subspaces ----------------------------------------------------------------------------------


def test_chosen_directions_are_edited_and_others_left_alone(kind):
    intervention, base = make(kind, dtype="float64"), hidden(2, 3)
    for chosen in ([0], [1, 4], [4, 1], list(range(R))):
        mask = numpy.isin(numpy.arange(R), chosen)
        edit = reference_edit(kind, intervention, base, chosen=mask)
        assert_same(intervention(base, subspaces=chosen), as_numpy(base) + edit)


def test_each_example_has_directions_of_its_own(kind):
    intervention, base = make(kind, dtype="float64"), hidden(3, 4)
    rows = [[0, 2], [4], []]
    mask = numpy.array([numpy.isin(numpy.arange(R), row) for row in rows])[:, None, :]
    edit = reference_edit(kind, intervention, base, chosen=mask)
    edited = intervention(base, subspaces=rows)
    assert_same(edited, as_numpy(base) + edit)
    assert torch.equal(edited[2], base[2])


@pytest.mark.parametrize("chosen", [[R], [-1], [[0], [R]], [True], [[0], [True]], [0.0]])
def test_a_direction_that_is_not_there_is_refused(kind, chosen):
    with pytest.raises(ValueError, match=f"0 to {R - 1}"):
        make(kind)(hidden(2, 3), subspaces=chosen)


def test_directions_for_another_number_of_examples_are_refused(kind):
    with pytest.raises(ValueError, match="3 examples"):
        make(kind)(hidden(2, 3), subspaces=[[0], [1], [2]])


# ---- dropout ------------------------------------------------------------------------------------


def test_dropout_drops_entries_of_the_edit_and_never_the_hidden_state(kind):
    p, base = 0.25, hidden(40, 50)
    intervention = make(kind, dtype="float64", dropout=p).train()
    edit = as_numpy(intervention(base)) - as_numpy(base)
    whole = reference_edit(kind, intervention, base)
    dropped = abs(edit) < 1e-9
    numpy.testing.assert_allclose(edit[~dropped], (whole / (1 - p))[~dropped], rtol=0, atol=1e-9)
    assert abs(dropped.mean() - p) < 0.02


def test_dropout_is_off_in_evaluation(kind):
    base, intervention = hidden(4, 5), make(kind, dtype="float64", dropout=0.9).eval()
    assert_same(intervention(base), as_numpy(base) + reference_edit(kind, intervention, base))


@pytest.mark.parametrize("p", [-0.1, 1.0, 2])
def test_a_dropout_that_is_no_probability_is_refused(kind, p):
    with pytest.raises(ValueError, match="dropout"):
        make(kind, dropout=p)


@pytest.mark.parametrize("rank", [0, -1, D + 1, None])
def test_a_rank_outside_the_width_is_refused(kind, rank):
    with pytest.raises(ValueError, match=f"low_rank_dimension must be from 1 .*{D}"):
        make(kind, rank)


@pytest.mark.parametrize("dtype", ["int32", "float31", torch.int64])
def test_a_type_that_is_not_floating_point_is_refused(kind, dtype):
    with pytest.raises(ValueError, match="dtype"):
        make(kind, dtype=dtype)


# ---- beginning at the base model ----------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"consreft"}))
def test_an_intervention_can_begin_by_editing_nothing(kind):
    intervention, base = make(kind, dtype="float64"), hidden(4, 5)
    intervention.edit_nothing()
    torch.testing.assert_close(intervention(base), base, rtol=0, atol=1e-12)
    intervention(base).square().sum().backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in intervention.parameters())


def test_a_free_projection_with_a_bias_can_begin_by_editing_nothing():
    intervention, base = make("noreft", dtype="float64", add_bias=True), hidden(4, 5)
    intervention.edit_nothing()
    torch.testing.assert_close(intervention(base), base, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "act_fn", "message"),
    [
        ("consreft", None, "no source of ConsreftIntervention"),
        ("loreft", "relu", "no source of LoreftIntervention with act_fn='relu'"),
        ("direft", "sigmoid", "act_fn='sigmoid' is not zero at zero"),
    ],
)
def test_what_cannot_edit_nothing_says_so(kind, act_fn, message):
    with pytest.raises(ValueError, match=message):
        make(kind, act_fn=act_fn).edit_nothing()
