"""A ReftDataset of one's own, and what the trainer learns of positions from a data set."""

import pytest
import torch
from transformers import TrainingArguments

import pyreft
from conftest import make_base

ROWS = [{"a": "hello", "b": "you"}, {"a": "x", "b": "yz"}]


class Mine(pyreft.ReftDataset):
    """Upstream's way: tensors, a number of prompt tokens, arguments of one's own."""

    shift = 0

    def preprocess(self, kwargs):
        self.prompt, self.answer = kwargs["prompt"], kwargs["answer"]

    def postprocess(self, kwargs):
        self.task_dataset = self.task_dataset.select(range(kwargs["keep"]))

    def tokenize(self, data_item):
        prompt = self.tokenizer(data_item[self.prompt], return_tensors="pt")["input_ids"][0]
        ids = self.tokenizer(data_item[self.prompt] + data_item[self.answer], return_tensors="pt")
        labels = ids["input_ids"][0].clone()
        labels[: len(prompt)] = -100
        return {"input_ids": ids["input_ids"][0], "labels": labels}, len(prompt) - self.shift


def build(cls, tokenizer, **changes):
    arguments = {"position": "l1", "prompt": "a", "answer": "b", "keep": 2} | changes
    return cls("task", None, tokenizer, dataset=ROWS, **arguments)


def open_model():
    representation = {"layer": 1, "component": "block_output", "low_rank_dimension": 2}
    config = pyreft.ReftConfig(representations=representation)
    return pyreft.get_reft_model(make_base("llama"), config)


def trainer(model, data, tokenizer, directory, **changes):
    settings = {"max_steps": 2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    settings |= {"disable_tqdm": True, "dataloader_pin_memory": False} | changes
    arguments = TrainingArguments(output_dir=str(directory), **settings)
    return pyreft.ReftTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer
    )


def test_a_subclass_says_what_a_row_becomes(tokenizer):
    data = build(Mine, tokenizer, keep=1, position="f1+l1", share_weights=True)
    assert len(data) == 1 and isinstance(data, torch.utils.data.Dataset)
    assert data[0]["intervention_locations"] == [[1, 5]]  # a pad token is before it
    assert (data.first_n, data.last_n) == (1, 1)
    assert data.raw_dataset is None
    assert build(Mine, tokenizer, data_split="test").raw_dataset[0] == ROWS[0]


def test_a_subclass_may_choose_positions(tokenizer):
    class First(Mine):
        def get_intervention_locations(self, **kwargs):
            assert {"last_position", "first_n", "last_n"} <= set(kwargs)
            return [[0]]

    class Second(Mine):
        def compute_intervention_and_subspaces(
            self, id, data_item, result, last_position, **kwargs
        ):
            assert kwargs["num_interventions"] == 1
            return {**result, "intervention_locations": [[1]], "id": -id}

    assert build(First, tokenizer)[1]["intervention_locations"] == [[1]]
    assert build(Second, tokenizer)[1]["id"] == -1


def test_the_trainer_records_the_positions_of_a_data_set(tokenizer, tmp_path):
    model = open_model()
    trainer(model, build(Mine, tokenizer), tokenizer, tmp_path).train()
    assert str(model.reft_config.representations[0].positions) == "l1"


def test_positions_that_the_adapter_would_not_find_are_not_recorded(tokenizer, tmp_path, caplog):
    """Upstream's own data sets return one token less than the prompt has."""

    class Shifted(Mine):
        shift = 1

    model = open_model()
    rows = [{"a": "hello", "b": "you"}, {"a": "xy", "b": "yz"}]
    data = Shifted(
        "task", None, tokenizer, dataset=rows, position="l1", prompt="a", answer="b", keep=2
    )
    assert data[0]["intervention_locations"] == [[4]]
    assert "2 of 2 examples have positions that are not those of" in caplog.text
    trainer(model, data, tokenizer, tmp_path).train()
    assert model.reft_config.representations[0].positions is None


def test_a_base_class_says_what_to_define(tokenizer):
    with pytest.raises(NotImplementedError, match="ReftDataset must define tokenize"):
        pyreft.ReftDataset("task", None, tokenizer, dataset=ROWS)


def test_an_error_of_a_row_names_it(tokenizer):
    class Broken(Mine):
        def tokenize(self, data_item):
            raise ValueError("no.")

    with pytest.raises(ValueError, match=r"row 0: no\.$"):
        build(Broken, tokenizer)
