"""What `pyreft env` says is what is installed here."""

import json

import pytest

from pyreft.cli import main
from pyreft.installed import all_facts
from pyreft.installed.releases import TESTED, installed_version


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["env", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_release_and_fact_is_there_for_programs(capsys):
    found = json.loads(run(capsys, "--json"))
    assert found["packages"] == {name: installed_version(name) for name in TESTED}
    assert found["facts"].keys() == {fact.name for fact in all_facts()}
    assert all(found["fast paths"].values())


def test_every_release_and_fact_is_there_for_people(capsys):
    text = run(capsys)
    assert all(f"tested {oldest} to {newest}" in text for oldest, newest in TESTED.values())
    assert all(fact.name in text for fact in all_facts())
