"""The card of an adapter on the Hub, over HTTP: it names the repository, and edits stay."""

import pytest
from hub_server import HubServer, connect
from runs import make_trainer, reft_model

from pyreft.sharing import push_directory
from pyreft.sharing.card import is_own_card

# What huggingface_hub does without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where alice is logged in."""
    with HubServer() as server:
        server.tokens["alices"] = "alice"
        connect(server, monkeypatch, tmp_path / "cache", token="alices")
        yield server


def test_the_card_names_the_repository_and_stays_as_people_edit_it(hub, tmp_path):
    model = reft_model()
    model.push_to_hub("adapter")
    card = hub.files("alice/adapter")["README.md"].decode()
    assert "\n# alice/adapter\n" in card
    assert 'model = ReftModel.from_pretrained(base, "alice/adapter")\n' in card
    assert is_own_card(card.encode())
    hub.add("alice/adapter", {"README.md": b"# Mine"})
    model.push_to_hub("alice/adapter")
    assert hub.files("alice/adapter")["README.md"] == b"# Mine"
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("# Mine, better")
    push_directory(tmp_path / "saved", "alice/adapter")
    assert hub.files("alice/adapter")["README.md"] == b"# Mine, better"


def test_the_card_on_the_hub_tells_of_the_run_until_somebody_edits_it(hub, tokenizer, tmp_path):
    settings = {"push_to_hub": True, "hub_model_id": "alice/run", "hub_token": "alices"}
    settings |= {"hub_strategy": "end", "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, **settings)
    trainer.train()
    trainer.push_to_hub(license="mit")
    card = hub.files("alice/run")["README.md"].decode()
    assert "license: mit" in card
    assert "`ReftTrainer`, 4 steps" in card
    assert 'from_pretrained(base, "alice/run")' in card
    assert "reft_loss.png" in hub.files("alice/run")
    edited = card.replace("A ReFT adapter", "My best adapter").encode()
    hub.add("alice/run", {"README.md": edited})
    trainer.push_to_hub()
    trainer.model.push_to_hub("alice/run")
    assert hub.files("alice/run")["README.md"] == edited
