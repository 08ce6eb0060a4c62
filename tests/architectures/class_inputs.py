"""What a tiny model is called with: the first of some sets of arguments that it accepts."""

import inspect
import itertools

import torch

# The last number is that of the tokens that a picture becomes.
BATCH, TOKENS, PROMPT, QUERIES = 2, 12, 6, 4
_NEEDS = ("input_ids", "pixel_values", "input_values", "input_features")


class CannotRunError(Exception):
    """The bare model runs with none of the arguments that are known here."""


def working_inputs(model):
    """The first arguments that the bare model runs with, in evaluation mode."""
    reasons = {}
    for inputs in candidates(model):
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            reasons.setdefault(", ".join(inputs), why)
        else:
            return inputs
    raise CannotRunError("; ".join(f"({given}) {why}" for given, why in reasons.items()))


def candidates(model):
    """Sets of arguments, those of the model's main input first."""
    takes = inspect.signature(model.forward).parameters
    texts = list(_texts(model, takes)) if "input_ids" in takes else []
    pictures = list(_pictures(model, takes))
    sounds = list(_sounds(model, takes))
    others = pictures + sounds
    main = getattr(model, "main_input_name", "input_ids")
    decoder = {}
    if "decoder_input_ids" in takes:
        decoder = {"decoder_input_ids": _ids(model, 8)}
    alone = [one | decoder for one in (texts if main == "input_ids" else others)]
    both = [one | two for one, two in itertools.product(texts, others)]
    rest = [one | decoder for one in texts + others] + texts + others
    channels = getattr(_part(model.config, "decoder_config"), "num_channels", None)
    if decoder and channels:
        # Of a sound, an id for each channel.
        several = decoder["decoder_input_ids"][..., None].repeat(1, 1, channels)
        rest = [one | {"decoder_input_ids": several} for one in texts] + rest
    rest += [one | {"use_cache": False} for one in texts]
    for inputs in alone + both + [one | decoder for one in both] + rest:
        yield inputs
        if "attention_mask" in inputs:
            yield {name: value for name, value in inputs.items() if name != "attention_mask"}


def _texts(model, takes):
    """A text; with tokens for a picture, if it has places for one; with several ids for a token."""
    text, config = _text(model), model.config
    yield text
    places, names = slice(3, 3 + QUERIES), ("image_token_index", "video_token_index")
    token = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    if token is not None and getattr(config, "num_query_tokens", None):
        text = {**text, "input_ids": text["input_ids"].clone()}
        text["input_ids"][:, places] = token
        yield text
    if "image_embeds_position_mask" in takes:
        places = torch.zeros(BATCH, TOKENS, dtype=torch.long)
        places[:, 3 : 3 + QUERIES] = 1
        yield text | {"image_embeds_position_mask": places}
    if several := getattr(config, "num_codebooks", None):
        # Rows of ids for each codebook, or ids of all codebooks and of the text for each token.
        yield {name: value.repeat_interleave(several, 0) for name, value in text.items()} | {
            "attention_mask": text["attention_mask"]
        }
        yield text | {"input_ids": text["input_ids"][..., None].repeat(1, 1, several + 1)}


def _text(model):
    """Two texts, the second with three pad tokens, which come first if the model generates."""
    ids, mask = _ids(model, TOKENS), torch.ones(BATCH, TOKENS, dtype=torch.long)
    padding = slice(0, 3) if pads_left(model) else slice(TOKENS - 3, TOKENS)
    mask[1, padding] = 0
    pad = model.config.get_text_config().to_dict().get("pad_token_id")
    if isinstance(pad, int) and pad >= 0:
        ids[1, padding] = pad
    if model.config.is_encoder_decoder and not model.can_generate():
        # Classifiers read the hidden state of the end token, of which each row has one.
        ends = getattr(model.config, "eos_token_id", None)
        if isinstance(ends, int):
            ids[0, -1] = ids[1, TOKENS - 4] = ends
    return {"input_ids": ids, "attention_mask": mask}


def pads_left(model):
    """Whether prompts are padded at the left: the model continues them."""
    return model.can_generate() and not model.config.is_encoder_decoder


def _ids(model, count):
    """(B, count) ids of plain tokens."""
    special = set(_special_ids(model.config.to_dict()))
    size = getattr(model.config.get_text_config(), "vocab_size", None) or 90
    plain = torch.tensor([token for token in range(3, min(90, size)) if token not in special])
    return plain[torch.randint(len(plain), (BATCH, count), generator=_generator())]


def _special_ids(fields):
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif not isinstance(name, str):
            continue
        elif name.endswith(("_id", "_index")) and isinstance(value, int):
            yield value
        elif name.endswith(("_id", "_ids")) and isinstance(value, list):
            yield from value


def _pictures(model, takes):
    if "pixel_values" in takes:
        config = _part(model.config, "vision_config", "encoder")
        sizes = [getattr(config, "image_size", None), getattr(config, "input_size", None), 64, 224]
        for size in dict.fromkeys(_pair(size) for size in sizes if size):
            for channels in {getattr(config, "num_channels", 3) or 3, 3}:
                picture = {"pixel_values": _noise(BATCH, channels, *size)}
                yield picture
                if "qformer_input_ids" in takes:
                    yield picture | {"qformer_input_ids": _ids(model, 4)}
                    film = {"pixel_values": picture["pixel_values"][:, None]}
                    yield film | {"qformer_input_ids": _ids(model, 4)}
                if "pixel_mask" in takes:
                    yield picture | {"pixel_mask": torch.ones(BATCH, *size, dtype=torch.long)}
                if "image_attention_mask" in takes:
                    one = {"pixel_values": picture["pixel_values"][:, None]}
                    yield one
                    seen = torch.ones(BATCH, TOKENS, 1, dtype=torch.long)
                    yield one | {"image_attention_mask": seen}
    if "spatial_shapes" in takes:
        # Four patches of 16 x 16.
        patches = {"pixel_values": _noise(BATCH, 4, 3 * 16 * 16)}
        patches["spatial_shapes"] = torch.full((BATCH, 2), 2)
        yield patches | {"pixel_attention_mask": torch.ones(BATCH, 4, dtype=torch.long)}
    if "bbox" in takes:
        yield {"bbox": torch.zeros(BATCH, TOKENS, 4, dtype=torch.long)}
        yield {"bbox": torch.zeros(BATCH, TOKENS, 4)}
    if "inputs" in takes:
        yield {"inputs": _noise(BATCH, 3, 224, 224)}
    if "flattened_patches" in takes:
        patches = _noise(BATCH, 6, 2 + 16 * 16 * 3)
        patches[..., :2] = torch.arange(1, 7)[:, None] // 2
        yield {"flattened_patches": patches, "attention_mask": torch.ones(BATCH, 6)}


def _sounds(model, takes):
    lengths = torch.ones(BATCH, 4800, dtype=torch.long)
    lengths[1, 3200:] = 0
    if "input_values" in takes:
        sound = _noise(BATCH, 4800) * lengths
        if "attention_mask" in takes and getattr(model.config, "feat_extract_norm", "") != "group":
            yield {"input_values": sound, "attention_mask": lengths}
        yield {"input_values": sound}
        config = model.config
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
            yield {"input_values": _noise(BATCH, config.max_length, config.num_mel_bins)}
    if "input_features" in takes:
        config = _part(model.config, "audio_config", "encoder_config")
        known = [getattr(config, name, None) for name in _MELS]
        long = 2 * (getattr(config, "max_source_positions", None) or 24)
        # Four frames in one; eight frames for each token of a text.
        sizes = dict.fromkeys([*(m for m in known if m), 80, *(4 * m for m in known if m)])
        for mels, count in itertools.product(sizes, (40, 41, long, 8 * TOKENS)):
            for shape in ((count, mels), (mels, count)):
                yield {"input_features": _noise(BATCH, *shape)}
                mask = torch.ones(BATCH, count, dtype=torch.long)
                mask[1, 30:] = 0
                yield {"input_features": _noise(BATCH, *shape), "attention_mask": mask}


_MELS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim")


def _part(config, *names):
    return next((getattr(config, name) for name in names if getattr(config, name, None)), config)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _noise(*shape):
    return torch.randn(*shape, generator=_generator())


def _generator():
    return torch.Generator().manual_seed(0)


def training_inputs(model, inputs, mapping):
    """The same with labels, as the mapping of the model expects them."""
    takes = inspect.signature(model.forward).parameters
    if "labels" not in takes:
        return inputs
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    if mapping in ("sequence_classification", "image_classification", "audio_classification"):
        labels = torch.tensor([0, 1])
    elif mapping == "ctc":
        labels = torch.tensor([[5, 6], [7, 8]])
    elif ids is None:
        return inputs
    elif mapping == "causal_lm" or ("decoder_input_ids" not in inputs and pads_left(model)):
        labels = ids.clone()
        labels[:, :PROMPT] = -100
    else:
        labels = ids.clone()
    return inputs | {"labels": labels}
