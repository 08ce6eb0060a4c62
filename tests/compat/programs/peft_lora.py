"""ReFT on a model with PEFT's LoRA; the component is a path through PEFT's wrapper."""

import torch
from _shared import (
    equal_start,
    fill,
    first_of,
    forget_gradients,
    keep_losses,
    make_llama,
    make_tokenizer,
    plain,
    training_arguments,
)
from peft import LoraConfig, get_peft_model

import pyreft

layers_to_transform = [1]
model, tokenizer = make_llama(), make_tokenizer(2048)
peft_config = LoraConfig(
    r=4,
    lora_alpha=32,
    target_modules=["o_proj"],
    layers_to_transform=layers_to_transform,
    use_rslora=True,
    lora_dropout=0.0,
    bias="none",
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, peft_config)
lora = {name: p for name, p in model.named_parameters() if "lora" in name}
fill(torch.nn.ParameterDict({name.replace(".", "_"): p for name, p in lora.items()}), 0.1)
reft_config = pyreft.ReftConfig(
    representations=[
        {
            "layer": layer,
            "component": f"base_model.model.model.layers[{layer}].output",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
            ),
        }
        for layer in layers_to_transform
    ]
)
reft_model = pyreft.get_reft_model(model, reft_config)
reft_model.model.enable_adapter_layers()
reft_model.print_trainable_parameters()
forget_gradients(equal_start(reft_model))

template = "user : %s assistant :"
examples = [["Who are you ?", "sun moon"], ["Why is the sky blue ?", "cold water"]]
data_module = pyreft.make_last_position_supervised_data_module(
    tokenizer, model, [template % e[0] for e in examples], [e[1] for e in examples]
)
arguments = training_arguments(
    num_train_epochs=10.0, per_device_train_batch_size=10, learning_rate=4e-3, logging_steps=20
)
trainer = pyreft.ReftTrainerForCausalLM(
    model=reft_model, tokenizer=tokenizer, args=arguments, **data_module
)
numbers = {"losses": keep_losses(trainer)}
_ = trainer.train()

reft_model.model.eval()
for _, intervention in reft_model.interventions.items():
    _ = first_of(intervention).eval()
prompt = tokenizer(template % "What is the sky ?", return_tensors="pt").to("cpu")
last = prompt["input_ids"].shape[-1] - 1
_, response = reft_model.generate(
    prompt,
    unit_locations={"sources->base": (None, [[[last]]])},
    intervene_on_prompt=True,
    max_new_tokens=8,
    do_sample=False,
    eos_token_id=tokenizer.eos_token_id,
    early_stopping=True,
)
numbers["ids"] = plain(response)
numbers["lora"] = [float(lora[name].norm()) for name in sorted(lora)]
numbers["parameters"] = [
    reft_model.count_parameters(include_model=False),
    reft_model.count_parameters(include_model=True),
]
