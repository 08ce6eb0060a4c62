"""Where pyvene is installed, its classes and ours understand each other. CI installs it beside."""

import copy
import pickle

import pytest
import torch

import pyreft
from conftest import WIDTH, make_base

IDS = torch.arange(3, 15).view(2, 6)
BEFORE = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=2)
AT = {"sources->base": (None, [[[2], [4]]])}
pv = pytest.importorskip("pyvene")
KINDS = ["Loreft", "Noreft", "Consreft", "Lobireft", "Direft", "Nodireft"]


@pytest.fixture(params=KINDS)
def intervention(request):
    cls = getattr(pyreft, f"{request.param}Intervention")
    return cls(embed_dim=WIDTH, low_rank_dimension=2)


def config(intervention, layer=1):
    entry = {"layer": layer, "component": "block_output", "low_rank_dimension": 2}
    return pv.IntervenableConfig(representations=[{**entry, "intervention": intervention}])


def test_ours_are_its_classes(intervention):
    for cls in ("SourcelessIntervention", "TrainableIntervention", "Intervention"):
        assert isinstance(intervention, getattr(pv, cls, pv.models.interventions.Intervention))
    assert issubclass(type(intervention), pv.DistributedRepresentationIntervention)
    assert isinstance(BEFORE, pv.TrainableIntervention), "made before pyvene was imported"


def test_they_are_copied_and_saved_as_before(intervention, tmp_path):
    hidden = torch.randn(2, WIDTH)
    for made in (copy.deepcopy(intervention), pickle.loads(pickle.dumps(intervention))):
        assert torch.equal(made(hidden), intervention(hidden))
    assert not {"embed_dim", "interchange_dim"} & set(intervention.state_dict())


def test_its_model_runs_ours_and_our_model_its_config(intervention):
    theirs = pv.IntervenableModel(config(intervention), model=make_base("llama"))
    ours = pyreft.get_reft_model(make_base("llama"), config(intervention))
    expected = theirs({"input_ids": IDS}, unit_locations=AT)[1].logits
    torch.testing.assert_close(ours({"input_ids": IDS}, unit_locations=AT)[1].logits, expected)
    assert (expected - make_base("llama")(IDS).logits).abs().max() > 1e-3


def test_a_config_may_name_the_class_alone():
    entry = {"layer": 0, "component": "mlp_output", "low_rank_dimension": 3}
    given = pv.IntervenableConfig([entry], intervention_types=pyreft.DireftIntervention)
    model = pyreft.get_reft_model(make_base("llama"), given)
    (made,) = model.interventions.values()
    assert isinstance(made, pyreft.DireftIntervention) and made.low_rank_dimension == 3


def test_a_config_for_sources_is_refused():
    given = pv.IntervenableConfig([{"layer": 0}], pyreft.LoreftIntervention, mode="serial")
    with pytest.raises(ValueError, match="no mode='serial'"):
        pyreft.get_reft_model(make_base("llama"), given)


def test_base_classes_are_its_own():
    from pyreft.interventions import SourcelessIntervention, TrainableIntervention

    assert SourcelessIntervention is pv.SourcelessIntervention
    assert TrainableIntervention is pv.TrainableIntervention
