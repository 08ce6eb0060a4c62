"""Encoder-decoder models from texts to a trained adapter: examples, batches, trainers, files."""

import copy

import pytest
import runs
import torch
from datasets import Dataset
from encoder_decoder_models import DECODER_LAYERS, START, make, make_generator
from runs import assert_close, assert_equal, losses, weights
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer

import pyreft

PROMPTS = [f"say {letter}: " for letter in "abcdefgh"]
COMPLETIONS = [letter * (1 + index % 3) for index, letter in enumerate("abcdefgh")]


@pytest.fixture(params=["t5", "bart"])
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS})


@pytest.fixture(scope="module")
def examples(rows, request):
    tokenizer = request.getfixturevalue("tokenizer")
    return pyreft.make_examples(rows, tokenizer, encoder_decoder=True)


def reft_model(architecture="t5", component="decoder_block_output", positions="all", **changes):
    torch.manual_seed(1)
    config = pyreft.ReftConfig(component=component, positions=positions, rank=4, **changes)
    return pyreft.get_reft_model(make_generator(architecture), config)


def make_trainer(model, examples, tokenizer, directory, **changes):
    given = {"train_dataset": examples, "eval_dataset": examples, "processing_class": tokenizer}
    given["data_collator"] = pyreft.ReftDataCollator(tokenizer=tokenizer, model=model)
    return runs.make_trainer(model, tokenizer, directory, **given | changes)


# ---- examples and batches ------------------------------------------------------------------------


def test_an_example_is_the_prompt_and_the_completion_each_by_itself(examples, tokenizer):
    for example, prompt, completion in zip(examples, PROMPTS, COMPLETIONS, strict=True):
        assert tokenizer.decode(example["input_ids"]) == prompt
        assert tokenizer.decode(example["labels"]) == completion + "<eos>"


def test_a_completion_that_is_too_long_is_cut_and_a_prompt_is_refused(rows, tokenizer, caplog):
    made = pyreft.make_examples(rows, tokenizer, encoder_decoder=True, max_length=7)
    assert max(len(labels) for labels in made["labels"]) <= 7
    long = Dataset.from_dict({"prompt": ["a"], "completion": ["b" * 20]})
    (cut,) = pyreft.make_examples(long, tokenizer, encoder_decoder=True, max_length=5)["labels"]
    assert len(cut) == 5
    assert "by 16 tokens in all" in caplog.text
    with pytest.raises(ValueError, match="row 0: the prompt has 7 tokens, more than max_length=6"):
        pyreft.make_examples(rows, tokenizer, encoder_decoder=True, max_length=6)


@pytest.mark.parametrize("empty", ["prompt", "completion"])
def test_an_empty_text_is_refused(tokenizer, empty):
    row = {"prompt": ["a"], "completion": ["b"]} | {empty: [""]}
    with pytest.raises(ValueError, match=f"row 0: the {empty} is empty"):
        pyreft.make_examples(Dataset.from_dict(row), tokenizer, encoder_decoder=True)


def test_a_chat_ends_where_the_answer_begins(tokenizer):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = Dataset.from_list([{"messages": chat}])
    (example,) = pyreft.make_examples(rows, tokenizer, encoder_decoder=True)
    assert tokenizer.decode(example["input_ids"]) == "user: hi<eos>\nassistant: "
    assert tokenizer.decode(example["labels"]) == "yes<eos>\n"


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_padded_at_the_right_by_their_own_length(architecture, tokenizer, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    collate = pyreft.ReftDataCollator(tokenizer=tokenizer, model=reft_model(architecture))
    batch = collate([{"input_ids": [5, 6, 7], "labels": [8]}, {"input_ids": [9], "labels": [4, 3]}])
    expected = [[5, 6, 7], [0, 0, 9]] if side == "left" else [[5, 6, 7], [9, 0, 0]]
    assert batch["input_ids"].tolist() == expected
    assert batch["labels"].tolist() == [[8, -100], [4, 3]]
    assert batch["decoder_input_ids"].tolist() == [[START, 8], [START, 4]]


def test_columns_of_the_decoder_are_padded_as_labels_are(tokenizer):
    collate = pyreft.ReftDataCollator(tokenizer=tokenizer, model=reft_model())
    rows = [
        {
            "input_ids": [5],
            "labels": [-100, 8],
            "decoder_input_ids": [2, 7],
            "completion_mask": [0, 1],
        },
        {"input_ids": [6], "labels": [9], "decoder_input_ids": [2], "completion_mask": [1]},
    ]
    batch = collate(rows)
    assert batch["decoder_input_ids"].tolist() == [[2, 7], [2, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1], [1, 0]]
    rows[1]["decoder_input_ids"] = [2, 2]
    with pytest.raises(ValueError, match="example 1 of the batch has 1 labels, but 2 decoder_inp"):
        collate(rows)


def test_labels_of_another_length_need_the_model(tokenizer):
    collate = pyreft.ReftDataCollator(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"has 2 input_ids, but 1 labels.*pass model="):
        collate([{"input_ids": [5, 6], "labels": [8]}])


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "positions"), [("decoder_block_output", "all"), ("block_output", "prompt")]
)
def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(
    architecture, component, positions, examples, tokenizer, tmp_path
):
    model = reft_model(architecture, component, positions)
    before = copy.deepcopy(model.model.state_dict())
    settings = {"max_steps": 30, "learning_rate": 0.05}
    trainer = make_trainer(model, examples, tokenizer, tmp_path, **settings)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    after = model.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_transformers_trainer_and_collator_train_the_same(
    architecture, examples, tokenizer, tmp_path
):
    # Their collator pads labels at the side of the tokenizer, which a pipeline may have changed.
    tokenizer, found = copy.deepcopy(tokenizer), []
    tokenizer.padding_side = "right"
    for cls in (pyreft.ReftTrainer, Seq2SeqTrainer):
        model = reft_model(architecture)
        theirs = DataCollatorForSeq2Seq(tokenizer, model=model)
        collator = {} if cls is pyreft.ReftTrainer else {"data_collator": theirs}
        make_trainer(model, examples, tokenizer, tmp_path, cls=cls, **collator).train()
        found.append(weights(model))
    assert_close(*found, atol=1e-4)


@pytest.mark.parametrize("cls", [pyreft.ReftTrainer, Seq2SeqTrainer])
def test_evaluation_generates_from_the_prompts(architecture, examples, tokenizer, tmp_path, cls):
    model, seen = reft_model(architecture), []

    def measure(predicted):
        seen.append(predicted.predictions)
        return {"rows": len(predicted.predictions)}

    settings = {"predict_with_generate": True, "generation_max_length": 6}
    trainer = make_trainer(
        model, examples, tokenizer, tmp_path, cls=cls, compute_metrics=measure, **settings
    )
    assert trainer.evaluate()["eval_rows"] == len(PROMPTS)
    inputs = tokenizer(PROMPTS[:1], return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert seen[0][0][:4].tolist() == expected[0].tolist()


@pytest.mark.parametrize("changes", [{"label_smoothing_factor": 1e-9}, {}])
@pytest.mark.parametrize("made", [True, False], ids=["decoder_input_ids", "labels alone"])
def test_the_decoder_is_told_what_the_trainer_keeps(
    architecture, examples, tokenizer, tmp_path, changes, made
):
    """Label smoothing and a loss function of the user take the labels from the model."""
    plain, kept = (reft_model(architecture, positions="l1+completion") for _ in range(2))
    make_trainer(plain, examples, tokenizer, tmp_path).train()
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer, model=kept)

    def collate(rows):
        batch = collator(rows)
        return batch if made else {k: v for k, v in batch.items() if k != "decoder_input_ids"}

    trainer = make_trainer(kept, examples, tokenizer, tmp_path, data_collator=collate, **changes)
    if not changes:

        def loss(outputs, labels, num_items_in_batch=None):
            return torch.nn.functional.cross_entropy(
                outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100
            )

        trainer.compute_loss_func = loss
    trainer.train()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(kept)[name], tensor, rtol=1e-4, atol=1e-4)


def test_what_is_trained_is_saved_and_loaded(architecture, examples, tokenizer, tmp_path):
    model = reft_model(architecture)
    settings = {"save_strategy": "steps", "save_steps": 4}
    make_trainer(model, examples, tokenizer, tmp_path, **settings).train()
    base = make_generator(architecture)
    loaded = pyreft.ReftModel.from_pretrained(base, tmp_path / "checkpoint-4")
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    generate = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    model.eval()  # no end: the Trainer gave its own model the tokenizer's
    assert torch.equal(loaded.generate(**inputs, **generate), model.generate(**inputs, **generate))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(examples, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole, resumed = reft_model(dropout=0.3), reft_model(dropout=0.3)
    make_trainer(whole, examples, tokenizer, tmp_path / "whole", **settings).train()
    trainer = make_trainer(resumed, examples, tokenizer, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal(weights(resumed), weights(whole))


def test_a_loss_of_a_model_of_unequal_depth_reaches_every_layer(examples, tokenizer):
    config = pyreft.ReftConfig(component="decoder_block_output", positions="l1", rank=4)
    model = pyreft.get_reft_model(make("t5"), config)
    collate = pyreft.ReftDataCollator(tokenizer=tokenizer, model=model)
    model(**collate([examples[0], examples[1]])).loss.backward()
    touched = [p.grad for p in model.interventions.parameters() if p.grad is not None]
    assert len(model.interventions) == DECODER_LAYERS
    assert all(grad.isfinite().all() for grad in touched)
    assert touched


def test_examples_of_a_causal_language_model_are_refused(rows, tokenizer):
    causal = pyreft.make_examples(rows, tokenizer)
    collator = pyreft.ReftDataCollator(tokenizer=tokenizer, model=reft_model())
    with pytest.raises(ValueError, match="encoder_decoder=True"):
        collator([causal[0]])
