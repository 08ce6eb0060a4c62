"""Teach a model of sounds new classes: LoReFT on an AST, in a minute on a CPU.

    python examples/sounds.py
    python examples/sounds.py --positions patch --rank 4

The sounds are made here: tones of a third of a second, of one of eight kinds, at any pitch and
loudness, with noise. A small AST is trained from nothing to name the first four kinds, and is then
frozen. The other four are learned on top of it from 120 sounds, each method with a new head: the
head alone, and LoReFT after every layer.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Trainer,
    set_seed,
)

import pyreft
from images import fit

RATE, SAMPLES, FRAMES, MELS = 16_000, 5_200, 32, 32
KINDS = ["tone", "falling", "rising", "noise", "vibrato", "tremolo", "two tones", "clicks"]


def sound(kind: str, random: np.random.Generator) -> np.ndarray:
    """(SAMPLES,) of one kind, each one another."""
    time = np.arange(SAMPLES) / RATE
    length, pitch = time[-1], random.uniform(300, 1200)
    bend = {"falling": -0.6, "rising": 1.2}.get(kind, 0.0)
    phase = 2 * np.pi * pitch * (time + bend * time**2 / (2 * length))
    if kind == "vibrato":
        phase += 6 * np.sin(2 * np.pi * random.uniform(9, 14) * time)
    wave = np.sin(phase)
    if kind == "noise":
        wave = random.normal(size=SAMPLES)
    elif kind == "tremolo":
        wave *= np.sin(2 * np.pi * random.uniform(9, 14) * time) ** 2
    elif kind == "two tones":
        wave += np.sin(phase * random.uniform(1.8, 2.6))
    elif kind == "clicks":
        wave = np.where(time % random.uniform(0.03, 0.06) < 0.002, wave, 0.0)
    return random.uniform(0.2, 1.0) * wave + 0.02 * random.normal(size=SAMPLES)


def sounds(kinds: list[str], count: int, seed: int) -> list[dict]:
    """Rows of a waveform and a label, as a data set of sounds has them."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(kinds))
    return [{"audio": sound(kinds[label], random), "label": int(label)} for label in labels]


class Collator:
    """Waveforms become the spectrograms (B, FRAMES, MELS) that the model reads."""

    def __init__(self) -> None:
        self.extractor = ASTFeatureExtractor(
            sampling_rate=RATE, num_mel_bins=MELS, max_length=FRAMES, mean=-6.0, std=4.0
        )

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        waves = [row["audio"] for row in rows]
        batch = self.extractor(waves, sampling_rate=RATE, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


def ast() -> ASTForAudioClassification:
    """An AST whose patches are 8 bins of 8 frames."""
    set_seed(0)
    config = ASTConfig(
        max_length=FRAMES,
        num_mel_bins=MELS,
        patch_size=8,
        time_stride=8,
        frequency_stride=8,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=4,
    )
    return ASTForAudioClassification(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", default="all", help='such as "class" or "patch"')
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("out/sounds"))
    arguments = parser.parse_args()
    steps, out = arguments.steps, arguments.out
    few, held_out = sounds(KINDS[4:], 120, seed=1), sounds(KINDS[4:], 400, seed=2)

    base = ast()
    known, unheard = sounds(KINDS[:4], 600, seed=3), sounds(KINDS[:4], 200, seed=4)
    collate = Collator()
    found = fit(Trainer, base, known, unheard, steps, 1e-3, out, collate)
    print(f"\nThe base model names {found:.1%} of {len(unheard)} new sounds: {KINDS[:4]}.\n")

    def start() -> ASTForAudioClassification:
        """The trained base model, frozen, with a new head."""
        model = ast()
        model.audio_spectrogram_transformer.load_state_dict(
            base.audio_spectrogram_transformer.state_dict()
        )
        return model.requires_grad_(False)

    head = start()
    head.classifier.requires_grad_(True)
    config = pyreft.ReftConfig(
        positions=arguments.positions, rank=arguments.rank, modules_to_save=["classifier"]
    )
    methods = {
        "head alone": (Trainer, head),
        "LoReFT": (pyreft.ReftTrainer, pyreft.get_reft_model(start(), config)),
    }
    lines = []
    for name, (trainer, model) in methods.items():
        found = fit(trainer, model, few, held_out, steps, 1e-2, out, collate)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"{name:<12}{trained:>7,} trained numbers{found:>8.1%}")
    model.save_pretrained(out / "adapter")
    print(f"\n{KINDS[4:]}, learned from {len(few)} sounds, on {len(held_out)} others:")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
