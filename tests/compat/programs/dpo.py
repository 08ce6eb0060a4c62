"""Preferences: the calls of the DPO trainer of the example, in a loop of its own.

TRL's trainer of today has none of the methods that the example replaces, so the loss is here.
"""

import torch
from _shared import equal_start, make_llama, make_tokenizer, plain
from datasets import Dataset

import pyreft

questions = [
    "Why is the sky blue today ?",
    "Who are you and who am I ?",
    "Name a color and a cat .",
]
correct = [" cold water", " moon star", " red"]
incorrect = [" dog", " one two three", " bird bird"]
model, tokenizer = make_llama(), make_tokenizer(2048)
layers = [0, 2]
reft_config = pyreft.ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
            ),
        }
        for layer in layers
    ]
)
reft_model = pyreft.get_reft_model(model, reft_config)
reft_model.set_device("cpu")
reft_model.print_trainable_parameters()
equal_start(reft_model, scale=0.05)

prompts = [f"user : {question} assistant :" for question in questions]
data_module = pyreft.make_multiple_position_supervised_data_module(
    tokenizer,
    model,
    prompts,
    correct,
    positions="f1+l1",
    share_weights=True,
    num_interventions=len(layers),
)
train_dataset = Dataset.from_dict(
    {
        "intervention_locations": data_module["train_dataset"]["intervention_locations"],
        "prompt": prompts,
        "chosen": correct,
        "rejected": incorrect,
    }
)
assert all(
    i[0][1] < len(tokenizer.encode(p))
    for i, p in zip(train_dataset["intervention_locations"], train_dataset["prompt"], strict=True)
)


def tokenize(answers):
    """Ids, mask and labels of prompts and answers, padded at the right."""
    texts = [p + a + tokenizer.eos_token for p, a in zip(prompts, answers, strict=True)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(tokenizer(prompt)["input_ids"])] = -100
    return batch["input_ids"], batch["attention_mask"], labels


def concatenated(answers_of_pairs):
    ids, masks, labels = zip(*map(tokenize, answers_of_pairs), strict=True)
    width = max(i.shape[1] for i in ids)

    def pad(tensors, value):
        shapes = [(0, width - t.shape[1]) for t in tensors]
        pad = torch.nn.functional.pad
        return torch.cat([pad(t, s, value=value) for t, s in zip(tensors, shapes, strict=True)])

    return pad(ids, 0), pad(masks, 0), pad(labels, -100)


def log_probabilities(logits, labels):
    labels = labels[:, 1:]
    scores = logits[:, :-1].log_softmax(-1)
    chosen = scores.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (chosen * (labels != -100)).sum(-1)


def concatenated_forward(model, batch, locations, reference=False):
    ids, mask, labels = batch
    # A pair begins with the same prompt, so that its positions are given twice.
    unit_locations = torch.tensor(locations + locations).transpose(0, 1).tolist()
    if reference:
        outputs = model.model(
            input_ids=ids.to(model.get_device()),
            attention_mask=mask.to(model.get_device()),
            use_cache=False,
        )
    else:
        _, outputs = model(
            {
                "input_ids": ids.to(model.get_device()),
                "attention_mask": mask.to(model.get_device()),
            },
            unit_locations={"sources->base": (None, unit_locations)},
            use_cache=False,
        )
    return log_probabilities(outputs.logits, labels).chunk(2)


beta, losses = 0.1, []
batch = concatenated([correct, incorrect])
locations = list(train_dataset["intervention_locations"])
optimizer = torch.optim.AdamW(reft_model.parameters(), lr=1e-2, weight_decay=0.0)
for _ in range(5):
    chosen, rejected = concatenated_forward(reft_model, batch, locations)
    with torch.no_grad():
        old_chosen, old_rejected = concatenated_forward(reft_model, batch, locations, True)
    margin = (chosen - old_chosen) - (rejected - old_rejected)
    loss = -torch.nn.functional.logsigmoid(beta * margin).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss))
reft_model.save_intervention(save_directory="./tmp/intervenable_model", include_model=True)

prompt = tokenizer("user : What is the sea ? assistant :", return_tensors="pt").to("cpu")
last = prompt["input_ids"].shape[-1] - 1
with torch.no_grad():
    bare, response = reft_model.generate(
        prompt,
        unit_locations={"sources->base": (None, [[[0, last]], [[0, last]]])},
        intervene_on_prompt=True,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        output_original_output=True,
    )
numbers = {"losses": losses, "ids": plain(response), "ids of the base model": plain(bare)}
