"""One way to train, in a process of its own: it takes a step when it is told to, and times it.

    python worker.py '{"method": "pyreft", "model": "...", "layers": [15], ...}'

Started by harness.py, with the Python of the environment that has the method: it imports nothing
but what is there. Commands come in ("step", "saved", "peak", "generate", "generate bare") and lines
of JSON go out, one for each. A Trainer waits for them in a callback at the beginning of each step,
so that what is timed is what it does: forward, backward, clipping and the optimizer, without the
data loader.
"""

import json
import os
import resource
import sys
import time

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

# What others print must not come among the answers.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**what) -> None:
    _ANSWERS.write(json.dumps(what) + "\n")
    _ANSWERS.flush()


class Told:
    """Between two steps: wait for what to do, and say how long it took."""

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        self.model, self.device = model, device
        # With its adapter, where a trainer has one.
        self.edited = model

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self) -> None:
        while (command := sys.stdin.readline().strip()) in ("peak", "generate", "generate bare"):
            if command.startswith("generate"):
                answer(seconds=self._generate(bare=command.endswith("bare")))
                continue
            # KiB, on Linux.
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer(peak=torch.cuda.max_memory_allocated() if self.device == "cuda" else peak)
        if not command:
            os._exit(0)
        self.saved: dict[int, int] = {}
        own = {t.untyped_storage().data_ptr() for t in self.model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self.saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.hooks = None
        if command == "saved":
            self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            self.hooks.__enter__()
        self.start = self._now()

    def _generate(self, bare: bool) -> float:
        """Seconds of 32 tokens after each of 8 prompts of 96, which differ from the first on."""
        model = self.model if bare else self.edited
        ids = torch.arange(8 * 96, device=self.device).view(8, 96)
        ids = 3 + ids % (self.model.config.vocab_size - 3)
        model.eval()
        start = self._now()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=32,
            min_new_tokens=32,
        )
        seconds = self._now() - start
        model.train()
        return seconds

    def end(self) -> None:
        seconds = self._now() - self.start
        if self.hooks:
            self.hooks.__exit__(None, None, None)
        answer(seconds=seconds, saved=sum(self.saved.values()))


class Waits(TrainerCallback):
    def __init__(self, told: Told) -> None:
        self.told = told

    def on_step_begin(self, *args, **kwargs) -> None:
        self.told.begin()

    def on_step_end(self, *args, **kwargs) -> None:
        self.told.end()


def make_base(setting: dict):
    """A model from a directory, or of random weights from the fields of a LlamaConfig."""
    torch.manual_seed(0)
    dtype = getattr(torch, setting["dtype"])
    if isinstance(setting["model"], dict):
        base = LlamaForCausalLM(LlamaConfig(**setting["model"])).to(dtype)
    else:
        # The name that the oldest and the newest transformers know.
        base = AutoModelForCausalLM.from_pretrained(setting["model"], torch_dtype=dtype)
    return base.to(setting["device"])


def make_rows(setting: dict, vocabulary: int) -> list[dict]:
    """Random prompts and completions, all of one length, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    prompt, length = setting["prompt"], setting["prompt"] + setting["completion"]
    ids = torch.randint(3, vocabulary, (setting["rows"], length), generator=generator)
    labels = ids.clone()
    labels[:, :prompt] = -100
    return [
        {"input_ids": i, "labels": n} for i, n in zip(ids.tolist(), labels.tolist(), strict=True)
    ]


def collate(rows: list[dict]) -> dict:
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def to_device(batch: dict, setting: dict) -> dict:
    return {name: tensor.to(setting["device"]) for name, tensor in batch.items()}


def edited_positions(setting: dict) -> list[int]:
    """The first f and the last l tokens of the prompt."""
    first, last = setting["positions"]
    prompt = setting["prompt"]
    return [*range(first), *range(prompt - last, prompt)]


# ---- methods: a base model and rows -> a trainer ---------------------------------------------


def pyreft(setting: dict, base, rows: list[dict], arguments: dict) -> Trainer:
    import pyreft

    first, last = setting["positions"]
    positions = "+".join([f"f{first}"] * (first > 0) + [f"l{last}"] * (last > 0))
    config = pyreft.ReftConfig(layers=setting["layers"], positions=positions, rank=setting["rank"])
    return pyreft.ReftTrainer(
        model=pyreft.get_reft_model(base, config),
        reuse_frozen=setting["method"] != "pyreft, no reuse",
        args=TrainingArguments(**arguments),
        train_dataset=rows,
        data_collator=collate,
    )


def upstream(setting: dict, base, rows: list[dict], arguments: dict) -> Trainer:
    import pyreft

    sizes = {"embed_dim": base.config.hidden_size, "low_rank_dimension": setting["rank"]}
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": setting["rank"],
            "intervention": pyreft.LoreftIntervention(**sizes, dtype=base.dtype),
        }
        for layer in setting["layers"]
    ]
    model = pyreft.get_reft_model(
        base, pyreft.ReftConfig(representations=representations), set_device=False
    )
    model.set_device(setting["device"])
    at = [edited_positions(setting)] * len(setting["layers"])
    return pyreft.ReftTrainerForCausalLM(
        model=model,
        args=TrainingArguments(**arguments, remove_unused_columns=False),
        train_dataset=[{**row, "intervention_locations": at} for row in rows],
        data_collator=collate,
    )


def lora(setting: dict, base, rows: list[dict], arguments: dict) -> Trainer:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    return Trainer(model, TrainingArguments(**arguments), collate, rows)


def adapter_hub(setting: dict, base, rows: list[dict], arguments: dict) -> Trainer:
    """Its positions are those of the whole sequence, not of the prompt; as many are edited."""
    import adapters

    adapters.init(base)
    first, last = setting["positions"]
    config = adapters.LoReftConfig(
        layers=setting["layers"],
        prefix_positions=first,
        suffix_positions=last,
        r=setting["rank"],
        tied_weights=first > 0 and last > 0,
        dropout=0.0,
    )
    base.add_adapter("reft", config=config)
    base.train_adapter("reft")
    base.to(setting["device"])
    return adapters.AdapterTrainer(base, TrainingArguments(**arguments), collate, rows)


def run_bare(setting: dict, base, rows: list[dict], told: Told) -> None:
    """The frozen model, forward and backward to its embeddings, logits of labelled tokens alone."""
    head, batch = base.get_output_embeddings(), setting["batch"]
    for step in range(10**9):
        start = step * batch % len(rows)
        told.begin()
        inputs = {
            n: t.to(setting["device"]) for n, t in collate(rows[start : start + batch]).items()
        }
        embedded = base.get_input_embeddings()(inputs["input_ids"]).requires_grad_()
        mask, labels = inputs["attention_mask"], inputs["labels"][:, 1:]
        hidden = base.base_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False)[0]
        where = labels != -100
        logits = head(hidden[:, :-1][where]).float()
        torch.nn.functional.cross_entropy(logits, labels[where]).backward()
        told.end()


METHODS = {
    "pyreft": pyreft,
    "pyreft, no reuse": pyreft,
    "pyreft, other release": pyreft,
    "upstream": upstream,
    "lora": lora,
    "adapter-hub": adapter_hub,
}


def main() -> None:
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    base = make_base(setting)
    base.requires_grad_(False)
    rows = make_rows(setting, base.config.vocab_size)
    with torch.no_grad():
        loss = base(**to_device(collate(rows[:2]), setting)).loss.item()
    told = Told(base, setting["device"])
    if setting["method"] == "bare":
        answer(loss=loss)
        run_bare(setting, base, rows, told)
    arguments = {
        "output_dir": setting["out"],
        "num_train_epochs": 1000,
        "per_device_train_batch_size": setting["batch"],
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": setting["device"] == "cpu",
        "dataloader_pin_memory": setting["device"] == "cuda",
    }
    trainer = METHODS[setting["method"]](setting, base, rows, arguments)
    told.edited = trainer.model
    trainer.add_callback(Waits(told))
    answer(loss=loss)
    trainer.train()


if __name__ == "__main__":
    main()
