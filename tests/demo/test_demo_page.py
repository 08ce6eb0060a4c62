"""The page of `pyreft demo` in Chromium: clicks, streaming, errors, two users, lost pages."""

import json
import re
import shutil
import zipfile

import psutil
import pytest
import safetensors.torch
import torch
from demo_browser import chromium, demo, user  # noqa: F401 - fixtures
from playground_of import ask

from pyreft.demo.choice import Choice

expect = pytest.importorskip("playwright.sync_api").expect
# In milliseconds: a busy machine is slow, and a page that is wrong stays wrong.
expect.set_options(timeout=120_000)
pytestmark = pytest.mark.browser
PROMPT = "what do dogs like?"


def request(page, prompt=PROMPT, new_tokens=12):
    page.get_by_label("number input for New tokens, at most").fill(str(new_tokens))
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Answer").click()


# Notes every value that a text box has from now on.
NOTE_VALUES = "box => { box.seen = new Set(); setInterval(() => box.seen.add(box.value), 5) }"
LABELS = ("Base model", "With the adapter")


def expected(demo, name, strength=1.0, off=(), new_tokens=12):
    """What the playground answers without a page."""
    adapter = demo.playground.read(demo.folder / name)
    return ask(demo.playground, PROMPT, Choice(adapter, strength, frozenset(off)), new_tokens)


def expect_answers(page, wanted):
    for label, text in zip(LABELS, (wanted.base, wanted.adapter), strict=True):
        expect(page.get_by_label(label, exact=True)).to_have_value(text)


def choose(page, name):
    page.get_by_label("Adapter", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def test_answers_and_marks_are_those_of_the_playground(demo, user):
    page = user()
    request(page)
    wanted = expected(demo, "first")
    expect_answers(page, wanted)
    chips = page.locator("span[title^='token ']")
    assert chips.count() == int(wanted.marked.edited.any(1).sum()) == 3

    choose(page, "second")
    page.get_by_label("number input for Strength").fill("0.5")
    page.get_by_role("checkbox", name="1", exact=True).uncheck()
    request(page)
    changed = expected(demo, "second", 0.5, {1})
    expect_answers(page, changed)
    assert changed.adapter != wanted.adapter
    assert "layer 1" not in chips.first.get_attribute("title")


def test_an_answer_grows_and_can_be_stopped(demo, user):
    page = user()
    answer = page.get_by_label("Base model", exact=True)
    answer.evaluate(NOTE_VALUES)
    request(page, new_tokens=400)
    wanted = expected(demo, "first", new_tokens=400).base
    expect(answer).to_have_value(wanted)
    seen = answer.evaluate("box => [...box.seen]")
    assert any(text not in ("", wanted) for text in seen)
    assert all(wanted.startswith(text) for text in seen)
    request(page, "others ask", new_tokens=512)
    page.get_by_role("button", name="Stop", exact=True).click()
    request(page)
    expect_answers(page, expected(demo, "first"))


def test_nothing_is_asked_of_another_machine(demo, user):
    page = user()
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Train", exact=True).wait_for()
    hosts = {re.match(r"\w+://([^/:]+)", url)[1] for url in page.asked if "://" in url}
    assert hosts == {"127.0.0.1"}
    connected = {json.loads(line) for line in demo.connections.read_text().splitlines()}
    assert connected <= {"127.0.0.1"}
    sockets = psutil.Process(demo.process.pid).net_connections()
    assert {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_100_kilobytes_are_refused_and_the_page_goes_on(demo, user):
    page = user()
    request(page, "a long text " * 8500)
    expect(page.get_by_role("alert")).to_contain_text("at most 2,036 are answered")
    request(page)
    expect_answers(page, expected(demo, "first"))
    expect(page.get_by_role("alert")).to_have_count(0)


def upload(page, directory):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load an adapter from a directory").click()
    chooser.value.set_files(directory)


def test_an_adapter_for_another_model_is_refused(demo, user):
    page = user()
    upload(page, demo.folder / "other")
    expect(page.get_by_role("alert")).to_contain_text("this model has hidden_size 32")


def test_what_hostile_files_say_is_text(demo, user, tmp_path):
    page = user()
    shutil.copytree(demo.folder / "first", tmp_path / "hostile")
    weights = tmp_path / "hostile" / "reft_model.safetensors"
    name = "<img src=x onerror=\"document.title='ran'\">"
    safetensors.torch.save_file({name: torch.zeros(2)}, weights)
    (tmp_path / "hostile" / "reft_config.json").write_text(
        (demo.folder / "first" / "reft_config.json").read_text().replace('"fingerprint"', '"f"')
    )
    upload(page, tmp_path / "hostile")
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "ran"
    upload(page, demo.folder / "second")
    expect(page.get_by_label("Adapter", exact=True)).to_have_value("upload 1")


def test_two_users_have_choices_of_their_own(demo, user):
    pages = [user(), user()]
    upload(pages[1], demo.folder / "second")
    expect(pages[1].get_by_label("Adapter", exact=True)).to_have_value("upload 1")
    for page in pages:
        request(page, new_tokens=40)
    for page, name in zip(pages, ("first", "second"), strict=True):
        expect_answers(page, expected(demo, name, new_tokens=40))
    pages[0].get_by_label("Adapter", exact=True).click()
    names = pages[0].get_by_role("option").all_inner_texts()
    assert [name.strip(" ✓\n") for name in names] == ["first", "second", "(no adapter)"]


def train(page, epochs):
    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Epochs").fill(str(epochs))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take pairs from a file").click()
    pairs = [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(4)]
    content = "\n".join(map(json.dumps, pairs))
    file = {"name": "rows.jsonl", "mimeType": "application/json", "buffer": content.encode()}
    chooser.value.set_files(file)
    expect(page.get_by_text("it is 3")).to_be_visible()
    page.get_by_role("button", name="Train", exact=True).click()


def test_an_adapter_is_trained_downloaded_and_compared(demo, user, tmp_path):
    page = user()
    train(page, 6)
    run = page.get_by_label("Run", exact=True)
    expect(run).to_have_value(re.compile(r"Finished: step 6 of 6, loss \d"))
    page.locator("canvas, svg.marks").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the adapter").click()
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as archive:
        archive.extractall(tmp_path)
    page.get_by_role("tab", name="Compare").click()
    request(page)
    adapter = demo.playground.read(tmp_path / "adapter")
    expect_answers(page, ask(demo.playground, PROMPT, Choice(adapter), 12))


def test_options_that_are_not_possible_are_refused(demo, user):
    page = user()
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="What is edited, and the rate").click()
    page.get_by_label("Positions").fill("nowhere")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("nowhere")


def test_a_run_outlives_the_connection(demo, user):
    page = user()
    train(page, 400)
    run = page.get_by_label("Run", exact=True)
    # The checkpoint of the first step is written before the second one.
    expect(run).to_have_value(re.compile(r"Training: step ([2-9]|\d\d+) "))
    context = page.context
    page.close()
    newest = max(demo.runs.iterdir(), key=lambda path: path.name)
    assert list(newest.glob("adapter/checkpoint-*"))
    again = context.new_page()
    again.goto(demo.address)
    again.get_by_role("tab", name="Train").click()
    run = again.get_by_label("Run", exact=True)
    expect(run).to_have_value(re.compile("Finished: step 400 of 400"))
    assert (newest / "adapter" / "reft_model.safetensors").is_file()
    # Another user sees nothing of it.
    other = user()
    other.get_by_role("tab", name="Train").click()
    expect(other.get_by_label("Run", exact=True)).to_have_value("")
