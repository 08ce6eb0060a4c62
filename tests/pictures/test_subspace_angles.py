"""Principal angles between the subspaces of adapters."""

import math

import pytest
import torch
from unchanged import unchanged

import pyreft
from conftest import KINDS, WIDTH, make_base
from pyreft import ReftConfig, get_reft_model
from pyreft.pictures.angles import principal_angles


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, width=WIDTH, seed=0):
    return torch.linalg.qr(random_matrix(width, rows, seed=seed))[0].T


def turned(angles, width=WIDTH, seed=0):
    """Bases (R, D) of two spaces with these principal angles, each mixed and scaled."""
    rank = len(angles)
    both = orthonormal(2 * rank, width, seed)
    angles = torch.tensor(angles, dtype=torch.float64)[:, None]
    second = angles.cos() * both[:rank] + angles.sin() * both[rank:]
    mixing = [random_matrix(rank, rank, seed=seed + n) + 2 * torch.eye(rank) for n in (1, 2)]
    return mixing[0] @ both[:rank], mixing[1] @ second


def wrap(**config):
    config = {"layers": [0, 2], "positions": "l1", "rank": 3} | config
    return get_reft_model(make_base("llama"), ReftConfig(**config))


# ---- angles of two matrices ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "angles",
    [
        [0.0, 0.0, 0.0],
        [math.pi / 2] * 3,
        [0.1, 0.7, 1.5],
        [1e-9, 1e-5, 1e-3],
        [0.0, math.pi / 4, math.pi / 2],
        [1.0],
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_spaces_of_known_angles(angles, seed):
    first, second = turned(angles, seed=seed)
    expected = torch.tensor(angles, dtype=torch.float64)
    for one, other in ((first, second), (second, first)):
        torch.testing.assert_close(principal_angles(one, other), expected, rtol=1e-6, atol=1e-13)


def test_spaces_of_different_dimensions():
    """A line at a known angle to a plane, and a space inside a larger one."""
    basis = orthonormal(4)
    line = (math.cos(0.3) * basis[0] + math.sin(0.3) * basis[3])[None]
    for pair in ((line, basis[:3]), (basis[:3], line)):
        torch.testing.assert_close(principal_angles(*pair), torch.tensor([0.3]).double())
    inside = random_matrix(2, 4, seed=5) @ basis
    assert principal_angles(inside, basis).max() < 1e-14
    # All of the space: nothing is outside.
    torch.testing.assert_close(
        principal_angles(torch.eye(8).double(), random_matrix(3, 8)), torch.zeros(3).double()
    )


def test_angles_are_those_of_projections():
    """The squared cosines are the eigenvalues of P Q P; an independent way to them."""
    first, second = random_matrix(4, 12), random_matrix(3, 12, seed=1)
    projections = [rows.T @ torch.linalg.inv(rows @ rows.T) @ rows for rows in (first, second)]
    product = projections[0] @ projections[1] @ projections[0]
    values = torch.linalg.eigvalsh((product + product.T) / 2).flip(0)[:3]
    found = principal_angles(first, second).cos().square()
    torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-12)


def test_rows_that_depend_on_each_other_span_less():
    basis = orthonormal(3)
    doubled = torch.stack([basis[0], 2 * basis[0], basis[0] - basis[1]])
    assert len(principal_angles(doubled, basis)) == 2
    assert len(principal_angles(torch.zeros(2, WIDTH), basis)) == 0


# ---- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_known_angles_of_adapters_of_every_kind(kind):
    model = wrap()
    model.add_adapter("other", ReftConfig(layers=[2, 1, 0], positions="f2", rank=3, kind=kind))
    wanted = {0: [0.0, 0.5, 1.0], 2: [0.2, 0.9, math.pi / 2]}
    for name in ("default", "other"):
        adapter = model.adapters[name]
        pairs = zip(adapter.config.representations, adapter.interventions.values(), strict=True)
        for config, module in pairs:
            if config.layer not in wanted:
                continue
            rows = turned(wanted[config.layer], seed=config.layer)[name == "other"].float()
            if hasattr(module, "rotate_layer"):
                module.rotate_layer.weight = torch.linalg.qr(rows.T)[0]
            else:
                module.proj_layer.weight.data.copy_(rows)
    with unchanged(model):
        found = pyreft.subspace_angles(model, "default", "other")
    assert found.sites == ("0", "2") and found.adapters == ("default", "other")
    expected = torch.tensor([wanted[0], wanted[2]], dtype=torch.float64)
    torch.testing.assert_close(found.degrees, torch.rad2deg(expected), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.overlap, expected.cos().square().mean(1), rtol=1e-4, atol=1e-6)


def test_an_adapter_has_no_angle_to_itself():
    found = pyreft.subspace_angles(wrap(), "default", "default")
    assert found.degrees.abs().max() < 1e-4
    torch.testing.assert_close(found.overlap, torch.ones(2).double())


def test_the_interventions_of_a_hidden_state_span_one_space():
    model = wrap(positions="f1+l1", tied=False, layers=[1])
    model.add_adapter("other", ReftConfig(layers=[1], positions="l1", rank=4))
    rows = [module.basis().detach() for module in model.interventions.values()]
    other = next(iter(model.adapters["other"].interventions.values())).basis().detach()
    found = pyreft.subspace_angles(model, "default", "other")
    expected = torch.rad2deg(principal_angles(torch.cat(rows), other))
    torch.testing.assert_close(found.degrees[0], expected)
    assert found.degrees.shape == (1, 4)


def test_layers_with_fewer_angles_are_filled_up():
    listed = [
        {"layer": n, "component": "block_output", "positions": "l1", "low_rank_dimension": rank}
        for n, rank in ((0, 1), (2, 3))
    ]
    model = wrap(rank=4)
    model.add_adapter("other", ReftConfig(representations=listed))
    found = pyreft.subspace_angles(model, "default", "other")
    assert found.degrees.isnan().tolist() == [[False, True, True], [False] * 3]
    assert found.plot()._repr_png_() and found._repr_html_().count("<span") == 4 + 2
    assert len(repr(found).splitlines()) == 4


def test_several_components_are_named():
    places = [{"layer": 1, "component": c, "positions": "l1"} for c in ("mlp_output", "mlp_input")]
    listed = [{**place, "low_rank_dimension": 2} for place in places]
    model = get_reft_model(make_base("llama"), ReftConfig(representations=listed))
    model.add_adapter("other", ReftConfig(representations=listed))
    found = pyreft.subspace_angles(model, "default", "other")
    assert found.sites == ("1 mlp_output", "1 mlp_input")
    assert "1 mlp_input" in found._repr_html_()
    labels = [label.get_text() for label in found.plot().axes[0].get_xticklabels()]
    assert labels == list(found.sites)


def test_what_cannot_be_compared_is_refused():
    model = wrap()
    with pytest.raises(ValueError, match="no adapter 'other'; there are default"):
        pyreft.subspace_angles(model, "default", "other")
    with pytest.raises(TypeError, match="of a ReftModel are compared, got str"):
        pyreft.subspace_angles("directory", "a", "b")
    model.add_adapter("elsewhere", ReftConfig(layers=[1], positions="l1", rank=2))
    with pytest.raises(ValueError, match="no hidden state in common: default edits bl"):
        pyreft.subspace_angles(model, "default", "elsewhere")
    for name, component in (
        ("whole", "attention_value_output"),
        ("heads", "head_attention_value_output"),
    ):
        model.add_adapter(name, ReftConfig(component=component, positions="l1", rank=2))
    with pytest.raises(ValueError, match="whole has directions of width 32 and heads of width 8"):
        pyreft.subspace_angles(model, "whole", "heads")
    place = {"layer": 0, "component": "block_output", "positions": "l1"}
    own = ReftConfig(representations=[{**place, "intervention": torch.nn.Linear(WIDTH, WIDTH)}])
    model.add_adapter("own", own)
    with pytest.raises(ValueError, match="the adapter 'own' has a Linear, which has no subspace"):
        pyreft.subspace_angles(model, "default", "own")
