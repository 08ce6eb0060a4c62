"""The tutorial of upstream's README as its users typed it, model, template and device aside."""

import pytest
import torch
import transformers
from conftest import make_base

import pyreft

prompt_no_input_template = "Q: %s\nA: "
training_examples = [
    ["Who are you?", ":-)"],
    ["Who am I?", ";-)"],
    ["What's 2+2?", ":-D :-D"],
    ["Why is the sky blue?", "8-)"],
]


def tiny_llama():
    return make_base("llama")


def config_of_the_tutorial(model, **place):
    return pyreft.ReftConfig(
        representations={
            **(place or {"layer": 1, "component": "block_output"}),
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=4
            ),
        }
    )


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """Steps 1 to 4: the model, the trainer, and where the adapter was saved in step 6."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        model = tiny_llama()
        reft_model = pyreft.get_reft_model(model, config_of_the_tutorial(model))
        reft_model.set_device("cpu")
        data_module = pyreft.make_last_position_supervised_data_module(
            tokenizer,
            model,
            [prompt_no_input_template % e[0] for e in training_examples],
            [e[1] for e in training_examples],
        )
        training_args = transformers.TrainingArguments(
            num_train_epochs=30.0,
            output_dir="./tmp",
            per_device_train_batch_size=10,
            learning_rate=4e-2,
            logging_steps=10,
        )
        trainer = pyreft.ReftTrainerForCausalLM(
            model=reft_model, tokenizer=tokenizer, args=training_args, **data_module
        )
        _ = trainer.train()
        reft_model.set_device("cpu")
        reft_model.save(save_directory="./reft_to_share")
        yield reft_model, trainer, "./reft_to_share"


def test_print(trained, capsys):
    reft_model, trainer, _ = trained
    print([e for e in trainer.state.log_history])
    reft_model.print_trainable_parameters()
    assert 0
