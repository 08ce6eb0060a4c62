"""What the programs of this folder begin with, the same in upstream's environment and in ours.

The programs stand for scripts that use stanfordnlp/pyreft 0.1.0. Each runs on transformers 4.45
with upstream's package and on transformers 5 with ours, and leaves a dict `numbers` to compare. So
the models and the starting interventions are filled from numpy, and what differs between the
releases of transformers is here and nowhere else.
"""

import zlib

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)
WIDTH, LAYERS = 64, 3
WORDS = """
Below is an instruction that describes a task paired with input provides further context Write a
response appropriately completes the request Instruction Input Response user assistant system You
are helpful answer Who am I What is two plus Why sky blue Plan trip to sea Tell me about rain Name
color red green yes no maybe good bad true false first second third one three four five cat dog
bird fish runs sleeps swims flies today now here there we they he she it was will be can not never
always GO ID key value who you Can in tell an and of with on for from can do a great movie bad plot
paris france rome italy capital left right up down sun moon star cold warm water stone tree house #
: ? . , ! ; - > [ ] / ' ### ->
""".split()


def make_tokenizer(model_max_length=512, begins_with_bos=True):
    """One token per word; `<unk>` is the pad token, as the scripts set it.

    The words of the programs are all in `WORDS`: an unknown one would be padding in upstream.
    """
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    for word in WORDS:
        vocabulary.setdefault(word, len(vocabulary))
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins_with_bos:
        fast.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} ; {% endfor %}"
    )
    return tokenizer


SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 520,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


@torch.no_grad()
def fill(model, scale=0.35):
    """Numbers from numpy in every parameter: by its name and shape, whatever made the model."""
    for name, parameter in model.named_parameters():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        numbers = rng.standard_normal(tuple(parameter.shape)).astype("float32")
        if "norm" in name.lower() or "ln_" in name:
            numbers = 0.1 * numbers + float(name.endswith("weight"))
        else:
            numbers *= scale
        parameter.copy_(torch.from_numpy(numbers))
    return model.eval()


def make_llama(task="CausalLM", dtype=torch.float32, **changes):
    """A Llama of three layers, 64 wide, for `CausalLM` or `SequenceClassification`."""
    sizes = SIZES | {"num_key_value_heads": 2, "vocab_size": len(make_tokenizer())} | changes
    config = transformers.LlamaConfig(**sizes, architectures=[f"LlamaFor{task}"])
    model = fill(getattr(transformers, f"LlamaFor{task}")(config)).to(dtype)
    if task == "CausalLM":
        plain = {"do_sample": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        model.generation_config = transformers.GenerationConfig(**plain)
    return model


def make_roberta(**changes):
    """A RoBERTa classifier, whose config names the architecture that it was trained as."""
    sizes = SIZES | {"vocab_size": len(make_tokenizer()), "hidden_dropout_prob": 0.0} | changes
    config = transformers.RobertaConfig(
        **sizes, attention_probs_dropout_prob=0.0, architectures=["RobertaForMaskedLM"]
    )
    return fill(transformers.RobertaForSequenceClassification(config))


def make_gpt2(**changes):
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}
    sizes |= {"vocab_size": len(make_tokenizer()), "pad_token_id": 0, "bos_token_id": 1}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 2}
    config = transformers.GPT2Config(**sizes, attn_implementation="eager", **changes)
    model = fill(transformers.GPT2LMHeadModel(config))
    plain = {"do_sample": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model.generation_config = transformers.GenerationConfig(**plain)
    return model


def make_neox_classifier(**changes):
    sizes = SIZES | {"vocab_size": len(make_tokenizer()), "num_labels": 2} | changes
    config = transformers.GPTNeoXConfig(**sizes, use_parallel_residual=True)
    return fill(transformers.GPTNeoXForSequenceClassification(config))


def unwrapped(intervention):
    """A module; pyvene before 0.1.8 had a pair of it and a hook in `interventions`."""
    return intervention[0] if isinstance(intervention, tuple) else intervention


def first_of(intervention):
    """`v[0]`, as scripts write it that were written with pyvene before 0.1.8.

    Ours allows it. In 0.1.8 the values are modules without: there they are taken as they are.
    """
    return intervention[0] if is_ours() else unwrapped(intervention)


def equal_start(reft_model, scale=0.3, seed=7):
    """The same numbers in each intervention, through `load_state_dict` with upstream's keys."""
    for index, intervention in enumerate(reft_model.interventions.values()):
        start(unwrapped(intervention), scale, seed + index)
    return reft_model


def start(intervention, scale=0.3, seed=7):
    rng = np.random.default_rng(seed)
    width, rank = int(intervention.embed_dim), rank_of(intervention)

    def normal(*shape):
        return torch.from_numpy(scale * rng.standard_normal(shape).astype("float32"))

    if hasattr(intervention, "proj_layer"):
        state = {
            f"{name}.{part}": normal(*tensor.shape)
            for name in ("proj_layer", "learned_source")
            for part, tensor in getattr(intervention, name).state_dict().items()
        }
        own = {key: value for key, value in intervention.state_dict().items() if key not in state}
        intervention.load_state_dict(own | state)
        return
    directions = torch.from_numpy(np.linalg.qr(rng.standard_normal((width, rank)))[0]).float()
    if isinstance(intervention.learned_source, torch.nn.Module):
        if "rotate_layer" in intervention.state_dict():
            state = {"weight": normal(rank, width), "bias": normal(rank)}
            intervention.load_state_dict(state | {"rotate_layer": directions})
        else:  # upstream's DiReFT has the state dict of torch
            with torch.no_grad():
                intervention.learned_source.weight.copy_(normal(rank, width))
                intervention.learned_source.bias.copy_(normal(rank))
            intervention.rotate_layer.weight = directions
    else:
        with torch.no_grad():
            intervention.learned_source.copy_(normal(rank))
        intervention.rotate_layer.weight = directions
    _complete(intervention.rotate_layer, directions)


def rank_of(intervention):
    source = intervention.learned_source
    return source.out_features if isinstance(source, torch.nn.Module) else source.shape[0]


def _complete(rotate_layer, directions):
    """In upstream's: the basis of R^D that ours has, where upstream draws a random one.

    Steps of Adam depend on this basis. After `load_state_dict` upstream's is not orthogonal, which
    is one of its defects.
    """
    if not hasattr(rotate_layer, "parametrizations"):
        return
    width, rank = directions.shape
    reflectors, scales = torch.geqrf(directions.double())
    eye = torch.eye(width, dtype=torch.float64)
    rest = torch.fft.fft(eye[rank:, rank:], dim=-2, norm="ortho")
    spread = eye.clone()
    spread[rank:, rank:] = rest.real - rest.imag
    basis = torch.ormqr(reflectors, scales, spread)
    basis[:, :rank] = directions
    rotate_layer.parametrizations.weight[0].base = basis.float()


def training_arguments(cls=transformers.TrainingArguments, **arguments):
    """`TrainingArguments`, with the names and defaults that changed between the releases."""
    if "evaluation_strategy" in arguments:  # until transformers 4.45
        arguments["eval_strategy"] = arguments.pop("evaluation_strategy")
    fixed = {"output_dir": "./tmp", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    fixed |= {"optim": "adamw_torch", "dataloader_pin_memory": False}
    return cls(**(fixed | {"save_strategy": "no"} | arguments))


def keep_losses(trainer):
    """The loss of each step, unrounded: the log's is rounded to four digits in both releases."""
    losses, step = [], trainer.training_step

    def training_step(*args, **kwargs):
        loss = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = training_step
    return losses


def plain(tensor):
    """A tensor as a flat list of floats."""
    return torch.as_tensor(tensor).detach().float().flatten().tolist()


def is_ours():
    import pyreft

    return hasattr(pyreft, "InterventionConfig")


def in_float32(reft_model, folder):
    """A loaded model as it was saved: upstream's `load` makes every intervention bfloat16."""
    if not is_ours():
        for key, intervention in reft_model.interventions.items():
            intervention.float()
            intervention.load_state_dict(torch.load(f"{folder}/intkey_{key}.bin"))
    return reft_model


def forget_gradients(reft_model):
    """Upstream's `zero_grad` leaves those of the base model, which add up over the steps."""
    if not is_ours():
        zero_grad = type(reft_model).zero_grad

        def zero_all():
            zero_grad(reft_model)
            reft_model.model.zero_grad()

        reft_model.zero_grad = zero_all
    return reft_model


class Skipped(Exception):
    """A program needs what is not installed."""


def needs_pyvene():
    """pyvene, which upstream depends on and ours does not."""
    try:
        import pyvene
    except ImportError as error:
        raise Skipped("needs pyvene") from error
    return pyvene
