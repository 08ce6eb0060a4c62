"""Models whose forward pass is not that of the installed transformers: right numbers, or an error.

Each is a Llama under another signature, as a release, remote code or a user may have it.
"""

import copy
import inspect
import logging

import pytest
import torch
import transformers as hf
from transformers import LlamaForCausalLM

import pyreft
from conftest import VOCAB, enlarge, make_llama, randomize
from pyreft.installed.caches import CACHE_NAMES, cache_argument
from pyreft.placement.steps import Steps

INSTALLED = cache_argument(LlamaForCausalLM)
OTHER = next(name for name in CACHE_NAMES if name != INSTALLED)
SPECS = ["f1", "f2+l1", "f7+l7", "prompt", "l1", "all"]


class Renamed(LlamaForCausalLM):
    """Its forward pass calls its cache by a name that nobody knows."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, memory=None, **rest):
        rest |= {INSTALLED: memory, "position_ids": position_ids}
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {"memory": inputs.pop(INSTALLED, None), **inputs}


class Both(LlamaForCausalLM):
    """Its forward pass takes a cache by either name, as code in between two releases may."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        **rest,
    ):
        rest |= {INSTALLED: past_key_values if cache is None else cache}
        rest |= {"position_ids": position_ids, "attention_mask": attention_mask}
        return super().forward(input_ids=input_ids, **rest)


class Neither(LlamaForCausalLM):
    """Its forward pass hands on what it does not name."""

    def forward(self, input_ids=None, **rest):
        return super().forward(input_ids=input_ids, **rest)


class Fieldless(LlamaForCausalLM):
    """Its outputs have no cache."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return type(outputs)(**{name: v for name, v in outputs.items() if name != INSTALLED})


class Opaque(LlamaForCausalLM):
    """Its cache comes wrapped in something of its own."""

    def forward(self, input_ids=None, attention_mask=None, memory=None, **rest):
        rest |= {INSTALLED: memory[0], "attention_mask": attention_mask}
        return super().forward(input_ids=input_ids, **rest)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {"memory": [inputs.pop(INSTALLED, None)], **inputs}


class Forgetful(LlamaForCausalLM):
    """Remote code of another release: it swallows the cache that it is passed."""

    def forward(self, input_ids=None, attention_mask=None, **rest):
        kept = {OTHER: None} | rest
        return super().forward(
            input_ids=input_ids, labels=rest.get("labels"), **{INSTALLED: kept[OTHER]}
        )


class Tuples(LlamaForCausalLM):
    """Its cache is a tuple, as before transformers had caches."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs[INSTALLED] = ((torch.zeros(1, 2, 3, 8),) * 2,)
        return inputs


def make(cls, positions="f2+l1", **changes):
    torch.manual_seed(0)
    base = cls(make_llama(tie_word_embeddings=False, **changes).config).eval()
    torch.manual_seed(0)
    config = pyreft.ReftConfig(positions=positions, rank=4)
    model = randomize(pyreft.get_reft_model(enlarge(base).double(), config), 0.3).double().eval()
    model.generation_config.eos_token_id = VOCAB
    return model


def generate(model, **options):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, **options
    ).tolist()


@pytest.mark.parametrize("positions", SPECS)
@pytest.mark.parametrize("cls", [LlamaForCausalLM, Renamed, Both, Neither])
def test_a_cache_is_found_by_whatever_name_it_is_passed(cls, positions):
    model = make(cls, positions)
    expected = generate(make(LlamaForCausalLM, positions), use_cache=False)
    assert generate(model) == generate(model, use_cache=False) == expected


@pytest.mark.parametrize("positions", SPECS)
def test_outputs_without_a_cache_give_the_same_numbers_or_an_error(positions):
    """Some releases take the cache from there, and go on without one."""
    expected = generate(make(LlamaForCausalLM, positions), use_cache=False)
    try:
        found = generate(make(Fieldless, positions))
    except pyreft.UnsupportedReleaseError as error:
        assert "a step that sees the tokens 0 to 0" in str(error)
    else:
        assert found == expected


@pytest.mark.parametrize("positions", SPECS)
@pytest.mark.parametrize("cls", [Opaque, Forgetful])
def test_a_step_that_begins_a_prompt_again_is_an_error(cls, positions):
    message = r"relies on this: Generate calls the model once for a step.*newest tested release is"
    with pytest.raises(pyreft.UnsupportedReleaseError, match=message):
        generate(make(cls, positions))


def test_a_prompt_of_one_token_is_not_taken_for_its_continuation():
    model = make(Opaque, "f1")
    with pytest.raises(pyreft.UnsupportedReleaseError, match="of a prompt of 1 tokens"):
        model.generate(input_ids=torch.tensor([[5]]), max_new_tokens=3, do_sample=False)


STEPS = {
    "cached": [(0, 9), (9, 1), (10, 1)],
    "not cached": [(0, 9), (0, 10), (0, 11)],
    "in chunks": [(0, 4), (4, 4), (8, 1), (9, 1)],
    "with candidates": [(0, 12), (10, 4), (12, 3), (14, 1)],
    "all again after candidates": [(0, 9), (9, 1), (10, 1), (0, 12)],
    "candidates of early layers": [(0, 9), (9, 1), (8, 2), (10, 1)],
}
WRONG = {
    "a prompt again": [(0, 9), (0, 1)],
    "the same again": [(0, 9), (0, 9)],
    "a gap": [(0, 9), (10, 1)],
    "back into the prompt": [(0, 9), (9, 1), (5, 1)],
}


def read(prompt, steps, cached=0):
    reader = Steps(prompt, cached)
    for start, length in steps:
        cache = hf.DynamicCache()
        if start:
            cache.update(torch.zeros(1, 1, start, 2), torch.zeros(1, 1, start, 2), 0)
        ids = torch.zeros(1, length, dtype=torch.long)
        assert reader.read((), {"input_ids": ids, INSTALLED: cache})[:2] == (start, length)
    reader.require_all()


@pytest.mark.parametrize("steps", STEPS)
def test_steps_that_follow_each_other_are_read(steps):
    read(9, STEPS[steps])


@pytest.mark.parametrize("steps", WRONG)
def test_steps_that_do_not_follow_each_other_are_refused(steps):
    with pytest.raises(pyreft.UnsupportedReleaseError, match="of a prompt of 9 tokens"):
        read(9, WRONG[steps])


def test_a_first_step_goes_on_from_a_cache_that_generate_was_given():
    read(9, [(5, 4), (9, 1)], cached=5)


def test_a_first_step_that_ignores_the_cache_it_was_given_is_refused():
    with pytest.raises(pyreft.UnsupportedReleaseError, match="tokens 0 to 3 after one that ended"):
        read(9, [(0, 4)], cached=5)


def test_a_generation_without_a_step_is_refused():
    with pytest.raises(ValueError, match="generates by a module inside it"):
        Steps(9).require_all()


def test_steps_that_leave_out_a_part_of_the_prompt_are_refused():
    with pytest.raises(pyreft.UnsupportedReleaseError, match="steps that saw 4 of the 9 tokens"):
        read(9, [(0, 4)])


def test_a_cache_that_does_not_count_is_refused():
    with pytest.raises(ValueError, match=r"\(tuple\), which does not count its tokens"):
        generate(make(Tuples))


def test_two_caches_in_one_call_are_refused():
    model = make(Both)
    caches = {name: hf.DynamicCache(config=model.config) for name in CACHE_NAMES}
    with pytest.raises(ValueError, match="two caches, cache and past_key_values"):
        model(input_ids=torch.tensor([[5, 6]]), **caches)


def test_a_model_that_takes_no_such_argument_says_so_itself():
    class Strict(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    with pytest.raises((TypeError, ValueError), match=r"unexpected keyword|not used by"):
        generate(make(Strict))


# ---- training ------------------------------------------------------------------------------------


def losses(model, directory, caplog, **options):
    rows = [{"input_ids": list(range(3, 15)), "labels": [-100] * 9 + [12, 13, 14]}] * 4
    arguments = hf.TrainingArguments(
        str(directory), max_steps=4, learning_rate=1e-2, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    collate = hf.DataCollatorForTokenClassification(_Padder())
    with caplog.at_level(logging.WARNING):
        trainer = pyreft.ReftTrainer(
            model, arguments, train_dataset=rows, data_collator=collate, **options
        )
        trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class _Padder(hf.PreTrainedTokenizerFast):
    def __init__(self):
        from tokenizers import Tokenizer, models

        super().__init__(
            tokenizer_object=Tokenizer(models.BPE({"<pad>": 0}, [])), pad_token="<pad>"
        )


@pytest.fixture
def heard(caplog, monkeypatch):
    for name in ("pyreft.reuse.reuse", "pyreft.training.reusing"):
        monkeypatch.setattr(hf.utils.logging.get_logger(name), "propagate", True)
    return caplog


def said(heard):
    """What pyreft logged; transformers has something to say of classes that it does not know."""
    return [record for record in heard.records if record.name.startswith("pyreft")]


@pytest.mark.parametrize("cls", [Renamed, Both])
def test_reuse_that_is_lost_is_warned_of_once_and_losses_are_the_same(cls, tmp_path, heard):
    model = make(cls, "l1").float()
    _, expected = losses(copy.deepcopy(model), tmp_path, heard, reuse_frozen=False)
    assert not said(heard)
    _, found = losses(model, tmp_path, heard)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (record,) = said(heard)
    assert record.levelname == "WARNING"
    assert f"forward of {cls.__name__} takes no cache by a known name" in record.message


def test_reuse_that_works_is_not_warned_of(tmp_path, heard):
    trainer, _ = losses(make(LlamaForCausalLM, "l1").float(), tmp_path, heard)
    assert not said(heard)
    assert trainer.reuse.report.windows < trainer.reuse.report.without


def test_transformers_logs_nothing_of_deprecated_names(tmp_path, heard, monkeypatch):
    """Names that it renamed are warned of by its logger too, not by `warnings` alone."""
    root = hf.utils.logging.get_logger("transformers")
    monkeypatch.setattr(root, "propagate", True)
    root.warning_once.cache_clear()
    model = make(LlamaForCausalLM, "l1").float()
    shared = torch.arange(40).repeat(2, 1) % 90 + 3
    shared[1, -1] = 5
    model.generate(input_ids=shared, max_new_tokens=2, return_dict_in_generate=True)
    losses(model, tmp_path, heard)
    assert "deprecated" not in heard.text


def test_the_names_of_caches_are_those_of_the_installed_release():
    assert INSTALLED in inspect.signature(LlamaForCausalLM.forward).parameters
    assert pyreft.installed.caches.generate_cache_argument() == INSTALLED
