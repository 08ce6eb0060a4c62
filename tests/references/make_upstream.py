"""Numbers of stanfordnlp/pyreft 0.1.0 on pyvene 0.1.8, for tests/compat to hold ours against.

Not run by the tests: what it writes is kept. To write it anew, in an environment of its own:

    python3.11 -m venv upstream
    upstream/bin/pip install torch==2.13.0 transformers==4.45.1 "accelerate<1.5" datasets \
        "huggingface_hub<1" matplotlib plotnine safetensors
    upstream/bin/pip install --no-deps pyreft==0.1.0 pyvene==0.1.8
    upstream/bin/python tests/references/make_upstream.py

It writes beside itself

    upstream.safetensors       the numbers; its metadata say what each case is, as JSON
    upstream_locations.json    the integers of get_intervention_locations and parse_positions

Tensors are named case/what, the weights of intervention i of a case case/i/what: R (D, R) is
rotate_layer.weight; P (R, D) and c (R,) are proj_layer's; W (R, D) and b (R,) learned_source's.
"""

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import pyreft

HERE = Path(__file__).parent
WIDTH, INNER, RANK = 16, 24, 3
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
CLASSES = {
    kind: getattr(pyreft, f"{kind.capitalize()}Intervention")
    for kind in ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")
}
# Kinds on their own: what is given beside embed_dim and low_rank_dimension.
ALONE = {
    **{kind: {"kind": kind} for kind in CLASSES},
    "loreft_relu": {"kind": "loreft", "act_fn": "relu"},
    "noreft_bias_gelu": {"kind": "noreft", "act_fn": "gelu", "add_bias": True},
    "direft_tanh": {"kind": "direft", "act_fn": "tanh"},
    "nodireft_silu": {"kind": "nodireft", "act_fn": "silu"},
}
# Row 0 has 7 tokens; row 1 has 5 and is padded on the right.
LENGTHS = (7, 5)
FIRST_LAST_TWO = [[0, 1, 5, 6], [0, 1, 3, 4]]
NAMES = ["block_input", "block_output", "mlp_input", "mlp_activation", "mlp_output"]
NAMES += ["attention_input", "attention_value_output", "attention_output"]
PATHS = (
    "model.layers[1].output",
    "model.layers[1].input",
    "model.layers[1].mlp.output",
    "model.layers[1].mlp.act_fn.output",
    "model.layers[1].self_attn.o_proj.input",
    "model.layers[1].self_attn.output",
)
ONE_EACH = [[[2], [3]]]
IN_MODEL = {
    "one_layer": {"at": [("loreft", 1, "block_output")], "locations": ONE_EACH},
    "every_layer": {
        "at": [("loreft", layer, "block_output") for layer in range(3)],
        "locations": [FIRST_LAST_TWO] * 3,
    },
    "prefix_and_suffix": {
        "at": [("loreft", 1, "block_output"), ("loreft", 1, "block_output")],
        "locations": [[[0, 1], [0, 1]], [[5, 6], [3, 4]]],
    },
    **{
        f"in_model_{kind}": {"at": [(kind, 1, "block_output")], "locations": [FIRST_LAST_TWO]}
        for kind in CLASSES
    },
    **{f"at {name}": {"at": [("loreft", 1, name)], "locations": ONE_EACH} for name in NAMES},
    **{f"at {path}": {"at": [("loreft", None, path)], "locations": ONE_EACH} for path in PATHS},
}
LEARNING_RATE, STEPS = 0.5, 10


def make(kind, embed_dim=WIDTH, rank=RANK, **arguments):
    """An intervention in float32 that has learned a little, so that R is not where it began."""
    arguments = {"add_bias": False, "dtype": torch.float32} | arguments
    intervention = CLASSES[kind](embed_dim=embed_dim, low_rank_dimension=rank, **arguments)
    optimizer = torch.optim.Adam(intervention.parameters(), lr=0.02)
    for _ in range(5):
        hidden = torch.randn(8, embed_dim)
        (intervention(hidden) - hidden.roll(1, -1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return intervention


def weights_of(intervention):
    """The weights by their letters."""
    weights = {}
    if hasattr(intervention, "rotate_layer"):
        weights["R"] = intervention.rotate_layer.weight
    else:
        weights["P"] = intervention.proj_layer.weight
        if intervention.proj_layer.bias is not None:
            weights["c"] = intervention.proj_layer.bias
    source = intervention.learned_source
    if isinstance(source, torch.nn.Linear):
        weights |= {"W": source.weight, "b": source.bias}
    else:
        weights["b"] = source
    return weights


def put(tensors, name, new):
    for letter, tensor in new.items():
        tensors[f"{name}/{letter}"] = tensor.detach().clone().contiguous()


def run_alone(tensors):
    """Each kind on random hidden states."""
    for name, case in ALONE.items():
        intervention = make(**case)
        hidden = torch.randn(2, 3, WIDTH)
        put(tensors, f"{name}/0", weights_of(intervention))
        put(tensors, name, {"hidden": hidden, "output": intervention(hidden)})


def run_subspaces(tensors):
    """LoReFT as in upstream's composition example: each row edits directions of its own."""

    class Composed(pyreft.LoreftIntervention):
        def forward(self, base, source=None, subspaces=None):
            change = self.learned_source(base) - self.rotate_layer(base)
            kept = torch.zeros_like(change)
            for row, directions in enumerate(subspaces):
                kept[row][..., directions] = change[row][..., directions]
            return base + kept @ self.rotate_layer.weight.T

    intervention = Composed(embed_dim=WIDTH, low_rank_dimension=RANK, dtype=torch.float32)
    base, ids, mask = model_and_batch(tensors)
    model = wrap(base, [("loreft", 1, "block_output")], [intervention])
    put(tensors, "composition/0", weights_of(intervention))
    _, outputs = model(
        {"input_ids": ids, "attention_mask": mask},
        unit_locations=at(ONE_EACH),
        subspaces=[[[0], [1, 2]]],
    )
    put(tensors, "composition", {"logits": outputs.logits})


def model_and_batch(tensors):
    """The Llama and the padded batch that were stored; made and stored at the first call."""
    base = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    if "input_ids" not in tensors:
        put(tensors, "llama", base.state_dict())
        mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        ids = torch.randint(1, LLAMA["vocab_size"], mask.shape) * mask
        tensors |= {"input_ids": ids, "attention_mask": mask.long()}
    weights = {n: tensors[f"llama/{n}"] for n in base.state_dict()}
    base.load_state_dict(weights)
    return base, tensors["input_ids"], tensors["attention_mask"]


def wrap(base, places, interventions, rank=RANK):
    representations = []
    for (_, layer, component), intervention in zip(places, interventions, strict=True):
        place = {"component": component, "low_rank_dimension": rank, "intervention": intervention}
        representations.append(place if layer is None else {"layer": layer, **place})
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))


def at(locations):
    return {"sources->base": (None, locations)}


def run_in_model(tensors):
    """Logits of the edited Llama."""
    base, ids, mask = model_and_batch(tensors)
    put(tensors, "bare", {"logits": base(ids, attention_mask=mask).logits})
    for name, case in IN_MODEL.items():
        base, ids, mask = model_and_batch(tensors)
        wide = ("mlp_activation", "act_fn.output")
        interventions = [
            make(kind, INNER if component.endswith(wide) else WIDTH)
            for kind, _, component in case["at"]
        ]
        for index, intervention in enumerate(interventions):
            put(tensors, f"{name}/{index}", weights_of(intervention))
        model = wrap(base, case["at"], interventions)
        batch = {"input_ids": ids, "attention_mask": mask}
        _, outputs = model(batch, unit_locations=at(case["locations"]))
        put(tensors, name, {"logits": outputs.logits})


def run_generation(tensors):
    """Greedy tokens after an edited prompt, and after both rows of a batch without padding."""
    base, ids, _ = model_and_batch(tensors)
    intervention = make("loreft")
    put(tensors, "generation/0", weights_of(intervention))
    model = wrap(base, [("loreft", 1, "block_output")], [intervention])
    prompt = {"input_ids": ids[:, :4], "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    _, generated = model.generate(
        prompt,
        unit_locations=at([[[3], [3]]]),
        intervene_on_prompt=True,
        max_new_tokens=8,
        do_sample=False,
    )
    put(tensors, "generation", {"ids": generated})


def run_training(tensors):
    """Losses of gradient descent on a kind whose parameters are the same as ours: NoReFT."""
    base, ids, mask = model_and_batch(tensors)
    intervention = make("noreft", add_bias=True)
    put(tensors, "training/0", weights_of(intervention))
    model = wrap(base, [("noreft", 1, "block_output")], [intervention])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    optimizer = torch.optim.SGD(intervention.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        batch = {"input_ids": ids, "attention_mask": mask}
        _, outputs = model(batch, unit_locations=at([[[0, 3], [0, 3]]]), labels=labels)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.detach())
    put(tensors, "training", {"labels": labels, "losses": torch.stack(losses)})


def locations():
    """[arguments, integers] on a grid; left out where an odd number would lose one."""
    grid = itertools.product(
        (0, 1, 2, 3, 5, 8, 14, 15),
        ("f1", "l1", "f3", "f1+l1", "f2+l5", "f4+l1", "f7+l7"),
        (True, False),
        ("first", "last"),
    )
    cases = []
    for last_position, positions, share_weights, pad_mode in grid:
        given = {"last_position": last_position, "positions": positions}
        given |= {"share_weights": share_weights, "pad_mode": pad_mode, "num_interventions": 2}
        cases.append([given, pyreft.get_intervention_locations(**given)])
    for more in (
        {"first_n": 2, "last_n": 3, "num_interventions": 4},
        {"first_n": 2, "last_n": 3, "num_interventions": 3, "share_weights": True},
        {"first_n": 0, "last_n": 1, "num_interventions": 1},
        {"positions": "l2", "num_interventions": 3, "pad_mode": "last"},
        {"positions": "f5+l5", "num_interventions": 6, "extra": "ignored"},
    ):
        given = {"last_position": 6, **more}
        cases.append([given, pyreft.get_intervention_locations(**given)])
    return cases


def main():
    torch.manual_seed(0)
    tensors = {}
    run_alone(tensors)
    run_in_model(tensors)
    run_subspaces(tensors)
    run_generation(tensors)
    run_training(tensors)
    about = {
        "llama": LLAMA,
        "rank": RANK,
        "alone": ALONE,
        "in_model": IN_MODEL,
        "training": {"learning_rate": LEARNING_RATE, "steps": STEPS},
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    save_file(tensors, HERE / "upstream.safetensors", metadata=metadata)
    specs = ("f1", "l1", "f7+l7", "f12", "l30", "f1+l4")
    integers = {
        "get_intervention_locations": locations(),
        "parse_positions": [[spec, list(pyreft.parse_positions(spec))] for spec in specs],
    }
    lines = (
        f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
        for name, cases in integers.items()
    )
    (HERE / "upstream_locations.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
