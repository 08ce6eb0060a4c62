"""The trainer trains a model of pictures as it does one of texts, and the adapter reloads."""

import pytest
import torch
import transformers as hf

import pyreft

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 2, "num_channels": 1}


def make():
    torch.manual_seed(0)
    return hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=2))


def rows():
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 8, 8, generator=draw) for _ in range(16)]
    return [{"pixel_values": one + i % 2, "labels": i % 2} for i, one in enumerate(noise)]


@pytest.mark.parametrize("heads", [None, ["classifier"]])
def test_a_model_of_pictures_trains_and_reloads(heads, tmp_path):
    config = pyreft.ReftConfig(positions="f1+l1", rank=4, modules_to_save=heads)
    model = pyreft.get_reft_model(make(), config)
    arguments = hf.TrainingArguments(
        str(tmp_path / "run"),
        max_steps=30,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
    )
    trainer = pyreft.ReftTrainer(
        model,
        arguments,
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=hf.default_data_collator,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.02
    model.save_pretrained(tmp_path / "adapter")
    loaded = pyreft.ReftModel.from_pretrained(make(), tmp_path / "adapter")
    pictures = torch.stack([row["pixel_values"] for row in rows()])
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pictures)[0], model.eval()(pixel_values=pictures)[0])
