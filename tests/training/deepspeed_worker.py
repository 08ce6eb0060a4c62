"""One process of two that train under DeepSpeed, and write down what came out.

python -m torch.distributed.run --nproc_per_node 2 deepspeed_worker.py DIRECTORY BASE_MODEL
"""

import sys
from pathlib import Path

import deepspeed  # noqa: F401
import distributed_worker
from accelerate.state import AcceleratorState
from transformers import LlamaForCausalLM, TrainingArguments

WAYS = {"zero2": 2, "zero3": 3, "zero3-loaded": 3}


def zero(stage, threshold=0):
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {"stage": stage}
    if stage == 3:
        # By default ZeRO-3 leaves whole what is as small as all of this model.
        settings["stage3_param_persistence_threshold"] = threshold
    return dict.fromkeys(auto, "auto") | {
        "zero_optimization": settings,
        "zero_force_ds_cpu_optimizer": False,
    }


def load_partitioned(directory):
    """The base model as `from_pretrained` loads it once it knows of ZeRO-3: in parts."""
    arguments = TrainingArguments(deepspeed=zero(3), use_cpu=True, report_to="none")
    base = LlamaForCausalLM.from_pretrained(directory)
    # transformers knows as long as they live.
    del arguments
    return base


def main():
    # It would be compiled now, for minutes; without it DeepSpeed uses gloo.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    out = Path(sys.argv[1])
    for way, stage in WAYS.items():
        loaded = "loaded" in way
        base = load_partitioned(sys.argv[2]) if loaded else None
        AcceleratorState._reset_state()
        config = zero(stage, threshold="auto" if loaded else 0)
        trainer = distributed_worker.train(out / way, processes=2, base=base, deepspeed=config)
        partitioned = [p for p in trainer.model.parameters() if p.numel() == 0]
        assert bool(partitioned) == (stage == 3)
        trainer.save_model(str(out / f"{way}-adapter"))
        distributed_worker.write(distributed_worker.of_trainer(trainer), out, way)
        if not loaded:
            AcceleratorState._reset_state()
            again, last = out / f"{way}-resumed", str(out / way / "checkpoint-3")
            distributed_worker.train(again, processes=2, resume=last, deepspeed=config)
    distributed_worker.leave()


if __name__ == "__main__":
    main()
