"""What would not be exact is not reused, and the reason is said."""

import re

import pytest
import torch
import transformers as hf
from peft import LoraConfig, inject_adapter_in_model
from reused import SIZES, Rows, collate, computed, losses, make_gemma3, make_model, make_trainer

import pyreft
from conftest import make_base
from pyreft.base_model.stacks import find_layers
from pyreft.reuse import NotReusableError, plan_reuse


def qwen3_next():
    sizes = {**SIZES, "num_hidden_layers": 4, "linear_num_value_heads": 2}
    sizes |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    return hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**sizes, shared_expert_intermediate_size=16))


def train_layer(model, index):
    find_layers(model.model)[index].mlp.down_proj.weight.requires_grad_(True)
    return model


def with_lora(index):
    base = make_base("llama")
    lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[index])
    inject_adapter_in_model(lora, base)
    model = pyreft.get_reft_model(
        base, pyreft.ReftConfig(layers=[1], positions="l1", rank=2), disable_model_grads=False
    )
    for name, parameter in model.model.named_parameters():
        parameter.requires_grad_("lora" in name)
    return model


def hooked():
    model = make_model()
    model.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: None)
    return model


def checkpointed():
    model = make_model()
    for layer in model.model.model.layers:
        layer.gradient_checkpointing = True
    return model


def compiled():
    model = make_model()
    model.model.model.layers[2].compile(backend="eager")
    return model


def asks_for_hidden_states():
    model = make_model()
    model.model.config.output_hidden_states = True
    return model


def with_embeddings_trained():
    model = make_model()
    model.model.get_input_embeddings().weight.requires_grad_(True)
    return model


def scaled_rope():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    return make_model(base=make_base("llama", rope_parameters=rope))


NOTHING = {
    "attention_dropout=0.1": lambda: make_model(base=make_base("llama", attention_dropout=0.1)),
    "drop is random": lambda: make_model(base=make_base("gpt2")),
    "dropout is random": lambda: make_model(base=make_base("bert"), positions="f1"),
    "a hook on model.layers.0.mlp": hooked,
    "gradient checkpointing": checkpointed,
    "compiled": compiled,
    "output_hidden_states": asks_for_hidden_states,
    "embed_tokens.weight of the base model is trained": with_embeddings_trained,
    "first layer is edited or trained, and layer 0": lambda: train_layer(make_model(), 0),
    "and layer 0 of the base model is trained": lambda: with_lora(0),
    "the length of the batch": scaled_rope,
    "an encoder and a decoder": lambda: make_model(
        base=hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=99)
        ),
    ),
}


@pytest.mark.parametrize("reason", NOTHING)
def test_nothing_is_reused(reason):
    model = NOTHING[reason]()
    model.train()
    with pytest.raises(NotReusableError, match=reason):
        plan_reuse(model)


LAYERS_ALONE = {
    "layer 2 of the base model is trained": lambda: train_layer(make_model(), 2),
    "layer 1 of the base model is trained": lambda: with_lora(1),
    "see later ones": lambda: make_model(base=make_gemma3(use_bidirectional_attention=True)),
    "a state other than keys and values": lambda: make_model(base=qwen3_next()),
}


@pytest.mark.parametrize("reason", LAYERS_ALONE)
def test_layers_are_reused_and_no_tokens(reason):
    model = LAYERS_ALONE[reason]()
    model.train()
    plan = plan_reuse(model)
    assert plan.skipped == (1 if "layer 1" in reason else 2)
    assert re.search(reason, plan.no_tokens)


def test_dropout_is_no_reason_in_evaluation():
    assert plan_reuse(make_model(base=make_base("gpt2")).eval()).no_tokens is None


def test_a_hook_of_transformers_that_captures_outputs_is_none():
    model = make_model()
    model(torch.ones(1, 3).long(), output_hidden_states=True)
    assert plan_reuse(model).skipped == 2


BATCHES = {
    "token_type_ids": lambda batch: {**batch, "token_type_ids": torch.zeros_like(batch["labels"])},
    "position_ids": lambda batch: {
        **batch,
        "position_ids": torch.arange(5, 5 + batch["labels"].shape[1]).expand_as(batch["labels"]),
    },
    "gaps": lambda batch: {**batch, "attention_mask": 1 - (batch["input_ids"] % 7 == 3).long()},
}


@pytest.mark.parametrize("reason", BATCHES)
def test_a_batch_that_is_not_understood_is_computed_whole(reason, tmp_path, caplog, monkeypatch):
    model = make_model("gpt2")
    trainer = make_trainer(model, tmp_path)
    model.train()
    batch = BATCHES[reason](collate([Rows()[i] for i in range(4)]))
    hf.utils.logging.get_logger("pyreft.reuse.reuse").setLevel("INFO")
    monkeypatch.setattr(hf.utils.logging.get_logger("pyreft.reuse.reuse"), "propagate", True)
    with computed(model) as counted, caplog.at_level("INFO"):
        trainer.compute_loss(model, batch)
    assert counted == {(layer, True): batch["labels"].numel() for layer in range(3)}
    assert reason in caplog.text


def test_nothing_is_reused_if_the_trainer_is_told_so(tmp_path):
    model = make_model()
    trainer = make_trainer(model, tmp_path, reuse_frozen=False)
    trainer.train()
    assert trainer.reuse is None


def test_a_loss_of_ones_own_sees_all_logits(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(outputs.logits.shape[:2] == labels.shape)
        return outputs.logits.sum()

    trainer = make_trainer(make_model(), tmp_path, compute_loss_func=loss, max_steps=1)
    trainer.train()
    assert seen == [True]
    assert "compute_loss_func" in trainer.reuse.reason


class Wrong(torch.nn.Module):
    """A layer that counts the tokens it sees, as no layer does."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.mlp = layer, layer.mlp

    def forward(self, hidden, *args, **kwargs):
        return self.layer(hidden, *args, **kwargs).roll(hidden.shape[1], -1)


def test_a_model_whose_loss_is_another_is_trained_without(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(hf.utils.logging.get_logger("pyreft.training.reusing"), "propagate", True)
    runs = []
    for reuse in (False, True):
        base = make_base("llama")
        base.model.layers[2] = Wrong(base.model.layers[2])
        trainer = make_trainer(make_model(base=base), tmp_path, reuse_frozen=reuse)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-5)
    assert "cannot be reused" in caplog.text
    assert runs[1].reuse.report.batches == 1
