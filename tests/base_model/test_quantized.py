"""Adapters on base models of 8 and 4 bits, and on weights that come from a GGUF file."""

import dataclasses

import pytest
import torch
import transformers as hf
from by_hand import find_layers, on_output
from reft import batch, gradients, logits, no_dropout, wrap

import pyreft
from conftest import VOCAB, WIDTH, make_base

# transformers says that it casts, bitsandbytes that a CPU is slow, and torchao what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")


def bitsandbytes(**settings):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return hf.BitsAndBytesConfig(**settings)


def torchao(name, **settings):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return hf.TorchAoConfig(getattr(quantization, name)(**settings))


WAYS = {
    "bitsandbytes, 8 bit": lambda: bitsandbytes(load_in_8bit=True),
    "bitsandbytes, 4 bit": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao, 8 bit": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao, 4 bit": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
}


# On some CPUs bitsandbytes converts blocks of 64 weights.
SIZES = {"hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(params=WAYS)
def quantized(request, tmp_path):
    """A tiny Llama whose linear maps have fewer bits."""
    settings = WAYS[request.param]()
    make_base("llama", **SIZES).save_pretrained(tmp_path / "base")
    return hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )


def test_a_quantized_model_is_edited_as_by_hand(quantized):
    model, inputs = wrap(quantized, layers=[1], positions="l1"), batch(quantized)
    found = logits(model, inputs)
    (edit,) = model.interventions.values()
    last = (inputs["labels"] == -100) & (inputs["attention_mask"] == 1)
    last &= last.cumsum(1) == last.sum(1, keepdim=True)

    def by_hand(hidden):
        return torch.where(last[..., None], edit(hidden), hidden)

    hook = find_layers(quantized)[1].register_forward_hook(on_output(by_hand))
    with model.disable_adapter():
        torch.testing.assert_close(found, logits(model, inputs), rtol=1e-3, atol=1e-3)
    hook.remove()


def test_a_quantized_model_trains_reloads_and_generates(quantized, tmp_path):
    inputs = batch(quantized)
    bare = logits(quantized, inputs)
    model = wrap(no_dropout(quantized))
    optimizer = torch.optim.Adam(model.interventions.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        gradients(model, inputs)
        optimizer.step()
        losses.append(float(model(**inputs).loss))
    assert losses[-1] < 0.9 * losses[0]
    expected = logits(model, inputs)
    prompt = {"inputs": torch.arange(3, 9)[None], "max_new_tokens": 3, "do_sample": False}
    generated = model.generate(**prompt)
    model.save_pretrained(tmp_path / "adapter")
    base = model.unwrap()
    loaded = pyreft.ReftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(loaded, inputs), expected)
    assert torch.equal(loaded.generate(**prompt), generated)
    assert torch.equal(logits(loaded.unwrap(), inputs), bare)


def test_the_trainer_trains_it_with_what_is_frozen_computed_once(quantized, tmp_path):
    inputs = batch(quantized)
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(3)]
    losses = []
    for reuse in (True, False):
        model = wrap(quantized, layers=[2])
        arguments = hf.TrainingArguments(
            str(tmp_path), num_train_epochs=3, per_device_train_batch_size=3, logging_steps=1
        )
        arguments = dataclasses.replace(arguments, save_strategy="no", report_to="none")
        trainer = pyreft.ReftTrainer(
            model=model, args=arguments, train_dataset=rows, reuse_frozen=reuse
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        model.unwrap()
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_components_of_a_quantized_model_have_the_widths_of_the_exact_one(quantized):
    exact = pyreft.list_components(make_base("llama", **SIZES))
    assert pyreft.list_components(quantized) == exact


def test_a_quantized_linear_map_takes_up_no_edit(quantized):
    model = wrap(quantized, component="mlp_output", positions="all")
    before = logits(model, batch(quantized))
    with pytest.raises(ValueError, match="are not plain numbers in memory"):
        model.merge_and_unload()
    assert torch.equal(logits(model, batch(quantized)), before)


def write_gguf(path):
    """A tiny Llama of 8 bits per weight, as llama.cpp names its tensors."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    torch.manual_seed(0)
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in {
        writer.add_context_length: 64,
        writer.add_embedding_length: WIDTH,
        writer.add_block_count: 2,
        writer.add_feed_forward_length: 64,
        writer.add_head_count: 4,
        writer.add_head_count_kv: 4,
        writer.add_vocab_size: VOCAB,
        writer.add_layer_norm_rms_eps: 1e-5,
        writer.add_rope_freq_base: 1e4,
    }.items():
        add(value)
    square, up, down = (WIDTH, WIDTH), (64, WIDTH), (WIDTH, 64)
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    inside = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    inside |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
    inside |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in inside.items()}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", torch.ones(shape).numpy())
        else:
            packed = gguf.quants.quantize((0.3 * torch.randn(shape)).numpy(), kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_a_gguf_file_train_and_reload(dtype, tmp_path):
    write_gguf(tmp_path / "model.gguf")

    def load():
        return hf.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", dtype=dtype
        )

    base = load()
    model, inputs = wrap(base), batch(base)
    gradients(model, inputs)
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    loaded = pyreft.ReftModel.from_pretrained(load(), tmp_path / "adapter")
    assert torch.equal(logits(loaded, inputs), expected)


def test_no_layer_is_asked_for_its_weights_unless_it_is_trained(tmp_path):
    # bitsandbytes loses weights of 4 bits in `state_dict`, on a CPU with AVX-512 BF16.
    def refuse(module, *args):
        raise AssertionError("its weights were asked for")

    def make():
        base = make_base("bert")
        for layer in find_layers(base):
            layer.register_state_dict_pre_hook(refuse)
        return base

    model = wrap(make(), modules_to_save=["classifier"])
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "default")
    loaded, inputs = pyreft.ReftModel.from_pretrained(make(), tmp_path), batch(model.model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    model.unwrap()


def test_linear_maps_do_not_see_the_end_of_training_when_an_adapter_is_put_on():
    # In evaluation bitsandbytes converts those of 4 bits, and computes wrong gradients after that.
    seen, base = [], make_base("llama", num_hidden_layers=1, vocab_size=VOCAB + 1)
    for module in base.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda one, args: seen.append(one.training))
    wrap(base)
    assert seen
    assert all(seen)
    assert not any(module.training for module in base.modules())
