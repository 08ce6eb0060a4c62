"""Scaled, negated, joined and selected interventions, against what their parts edit, in float64."""

import pytest
import torch
from torch import nn

from conftest import CONSTANT, KINDS, ORTHONORMAL
from pyreft.interventions import intervention_class, join, kind_of, scale, select_directions

D, R = 24, 3
FREE = ["noreft", "nodireft"]
# The kinds that take the projection of the hidden state away.
REPLACING = ["loreft", "noreft", "consreft"]


def make(kind, rank=R, seed=0, **arguments):
    torch.manual_seed(seed)
    given = {"dtype": "float64", "add_bias": kind == "noreft"} | arguments
    made = intervention_class(kind)(embed_dim=D, low_rank_dimension=rank, **given).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def disjoint(*kinds, **arguments):
    """Interventions whose directions are orthogonal to each other's."""
    whole = make("loreft", rank=R * len(kinds)).rotate_layer.weight.detach()
    made = [make(kind, seed=seed, **arguments) for seed, kind in enumerate(kinds)]
    for index, one in enumerate(made):
        if kind_of(one) in ORTHONORMAL:
            one.rotate_layer.weight = whole[:, R * index : R * (index + 1)]
    return made


def edit(intervention, dtype=torch.float64):
    torch.manual_seed(7)
    hidden = torch.randn(4, 5, D, dtype=dtype)
    return (intervention(hidden) - hidden).detach()


def assert_edits(intervention, expected):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(edit(intervention), expected, rtol=0, atol=1e-12)


# ---- scaling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [-1, 0.25, 3])
def test_a_scaled_intervention_edits_so_many_times_as_far(kind, factor):
    intervention = make(kind)
    assert_edits(scale(intervention, factor), factor * edit(intervention))


def test_scaling_keeps_the_kind_but_for_consreft(kind):
    scaled = scale(make(kind, dropout=0.1), -1)
    assert kind_of(scaled) == ("loreft" if kind == "consreft" else kind)
    assert scaled.dropout.p == 0.1
    assert scaled.low_rank_dimension == R


def test_scaling_by_zero_edits_nothing(kind):
    assert edit(scale(make(kind), 0)).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["direft", "nodireft"])
def test_what_adds_is_scaled_through_its_activation(kind):
    intervention = make(kind, act_fn="relu")
    scaled = scale(intervention, -2)
    assert kind_of(scaled) == "nodireft"
    assert_edits(scaled, -2 * edit(intervention))


@pytest.mark.parametrize("kind", ["loreft", "noreft"])
def test_what_replaces_cannot_be_scaled_through_an_activation(kind):
    with pytest.raises(ValueError, match=r"act_fn='tanh' cannot be scaled by 0\.5"):
        scale(make(kind, act_fn="tanh"), 0.5)


def test_scaling_by_one_is_a_copy_of_any_module():
    module = nn.Linear(3, 3)
    copied = scale(module, 1)
    assert copied is not module and torch.equal(copied.weight, module.weight)
    intervention = make("loreft", act_fn="relu")
    assert torch.equal(edit(scale(intervention, 1.0)), edit(intervention))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "2", None, True])
def test_a_factor_is_a_number(factor):
    with pytest.raises(ValueError, match="is scaled by a number"):
        scale(make("loreft"), factor)


def test_an_intervention_of_another_class_is_not_guessed_at():
    class Mine(type(make("loreft"))):
        pass

    with pytest.raises(ValueError, match="what Mine computes is not known"):
        scale(Mine(embed_dim=D, low_rank_dimension=R), 2)


def test_the_original_and_the_random_numbers_of_the_run_are_left_alone(kind):
    intervention = make(kind)
    before, state = edit(intervention), torch.random.get_rng_state()
    scale(intervention, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(edit(intervention), before)


def test_float32_stays_float32_and_less_becomes_it(kind):
    for dtype in ("bfloat16", "float32"):
        scaled = scale(make(kind, dtype=dtype), 0.3)
        assert {p.dtype for p in scaled.parameters()} == {torch.float32}
        expected = 0.3 * edit(make(kind, dtype=dtype), torch.float32)
        tolerance = 1e-5 if dtype == "float32" else 0.1
        torch.testing.assert_close(edit(scaled, torch.float32), expected, rtol=0, atol=tolerance)


# ---- joining -------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", KINDS)
def test_a_joined_intervention_edits_as_both_do(kind, other):
    one, two = disjoint(kind, other)
    if {kind, other} & set(FREE) and {kind, other} & {"loreft", "consreft"}:
        with pytest.raises(ValueError, match="subspaces that overlap"):
            join([one, two])
        return
    joined = join([one, two])
    assert joined.low_rank_dimension == 2 * R
    assert_edits(joined, edit(one) + edit(two))


def test_joining_keeps_the_kind_where_both_have_it(kind):
    assert kind_of(join(disjoint(kind, kind))) == kind


def test_more_than_two_are_joined():
    parts = disjoint("loreft", "consreft", "loreft")
    joined = join(parts)
    assert kind_of(joined) == "loreft"
    assert_edits(joined, sum(edit(part) for part in parts))


@pytest.mark.parametrize("kind", ["direft", "lobireft"])
def test_what_adds_may_overlap_and_is_then_free(kind):
    one, two = make(kind), make(kind, seed=1)
    joined = join([one, two])
    assert kind_of(joined) == "nodireft"
    assert_edits(joined, edit(one) + edit(two))


@pytest.mark.parametrize("kind", ["loreft", "consreft"])
def test_what_replaces_may_not_overlap(kind):
    one, two = make(kind), make(kind, seed=1)
    with pytest.raises(ValueError, match=r"0 and 1 use subspaces that overlap: the cosine .* is 0"):
        join([one, two])
    with pytest.raises(ValueError, match=r"the cosine .* is 1,"):
        join([one, one])


@pytest.mark.parametrize("kind", ["loreft", "noreft", "direft", "nodireft"])
def test_one_activation_is_joined_with_itself_alone(kind):
    one, two = disjoint(kind, kind, act_fn="relu")
    assert_edits(join([one, two]), edit(one) + edit(two))
    for other in disjoint(kind, kind)[1], disjoint(kind, kind, act_fn="tanh")[1]:
        with pytest.raises(ValueError, match="act_fn='relu' can only be joined"):
            join([one, other])


def test_dropout_stays_where_all_have_the_same():
    one, two = disjoint("loreft", "loreft", dropout=0.2)
    assert join([one, two]).dropout.p == 0.2
    assert join([one, disjoint("loreft", "loreft")[1]]).dropout.p == 0.0


def test_only_interventions_of_one_width_with_room_for_all_are_joined():
    with pytest.raises(ValueError, match=r"got the widths \[24, 8\]"):
        join([make("loreft"), intervention_class("loreft")(embed_dim=8, low_rank_dimension=1)])
    with pytest.raises(ValueError, match="add up to 26, which is more than the width 24"):
        join([make("noreft", rank=13), make("noreft", rank=13, seed=1)])
    with pytest.raises(ValueError, match="got the widths"):
        join([])


# ---- directions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [[0], [2, 0], [0, 1, 2]])
def test_selected_directions_edit_as_the_subspaces_of_the_whole(kind, chosen):
    intervention = make(kind)
    part = select_directions(intervention, chosen)
    assert kind_of(part) == kind and part.low_rank_dimension == len(chosen)
    torch.manual_seed(7)
    hidden = torch.randn(4, 5, D, dtype=torch.float64)
    expected = intervention(hidden, subspaces=chosen) - hidden
    assert_edits(part, expected.detach())


def test_activation_and_dropout_stay_with_selected_directions():
    part = select_directions(make("loreft", act_fn="gelu", dropout=0.1), [1])
    assert part.act_fn_name == "gelu" and part.dropout.p == 0.1


def test_directions_come_apart_and_together_again(kind):
    """Upstream's composition: directions of one intervention were trained for different tasks."""
    whole = make(kind)
    parts = [select_directions(whole, chosen) for chosen in ([0], [1, 2])]
    again = join(parts)
    assert kind_of(again) == kind
    assert_edits(again, edit(whole))


def test_directions_of_float32_count_as_orthogonal(kind):
    whole = make(kind, dtype="float32")
    again = join([select_directions(whole, chosen) for chosen in ([0, 1], [2])])
    torch.testing.assert_close(edit(again), edit(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([R], "0 to 2"),
        ([-1], "0 to 2"),
        ([0, 0], "different"),
        ([], "at least one"),
        ([0.5], "0 to"),
    ],
)
def test_directions_that_are_not_there_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        select_directions(make("loreft"), chosen)


def test_every_kind_is_covered():
    assert set(ORTHONORMAL) | set(FREE) == set(KINDS) and set(CONSTANT) < set(ORTHONORMAL)
