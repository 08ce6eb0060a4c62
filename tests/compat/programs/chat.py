"""A shared chat model: loaded and used, beside the base model that it was trained on."""

import torch
from _shared import equal_start, in_float32, make_llama, make_tokenizer, plain

import pyreft
from pyreft import ReftModel, get_intervention_locations

tokenizer = make_tokenizer(2048)


def share(folder):
    """What is downloaded from the Hub in the notebook."""
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=64, low_rank_dimension=4, dtype=torch.float32
                ),
            }
            for layer in [0, 1, 2, 0, 1, 2]
        ]
    )
    equal_start(pyreft.get_reft_model(make_llama(), config)).save(folder)


share("./reft_chat7b")
model = make_llama()
reft_model = in_float32(ReftModel.load("./reft_chat7b", model), "./reft_chat7b")
reft_model.set_device("cpu")

instruction = "Can you Tell me about the sea and the sky today ?"
prompt = f"Below is an instruction . ### Instruction : {instruction} ### Response :"
prompt = tokenizer(prompt, return_tensors="pt").to("cpu")
locations = (
    torch.tensor(
        [
            get_intervention_locations(
                last_position=prompt["input_ids"].shape[-1],
                positions="f5+l5",
                num_interventions=len(reft_model.interventions),
            )
        ]
    )
    .permute(1, 0, 2)
    .tolist()
)
arguments = {
    "max_new_tokens": 12,
    "do_sample": False,
    "no_repeat_ngram_size": 5,
    "repetition_penalty": 1.1,
    "eos_token_id": tokenizer.eos_token_id,
    "early_stopping": True,
}
_, response = reft_model.generate(
    prompt,
    unit_locations={"sources->base": (None, locations)},
    intervene_on_prompt=True,
    **arguments,
)
bare = model.generate(**prompt, **arguments)
numbers = {"ids": plain(response), "ids of the base model": plain(bare)}
assert numbers["ids"] != numbers["ids of the base model"]
