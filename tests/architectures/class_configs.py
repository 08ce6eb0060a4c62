"""The config of a tiny model of any architecture: its class's default config, with small sizes.

Sizes are recognized by the names of their fields. What an architecture needs beyond that is in
`class_fields.py`.
"""

import re

import transformers
from class_fields import BY_MODEL_TYPE, DROP, PARTS

WIDTH, HEADS, KV_HEADS, LAYERS, VOCAB, FIRST_SPECIAL = 32, 4, 2, 2, 128, 100
# A pattern of field names -> the largest number, also of those in a list.
SIZES = [
    (r"num_feat_extract_layers", 99),
    (r"rotary_dim", WIDTH // HEADS // 2),
    (r"(.*_)?(head_dim|head_size|d_kv|v_head_dim|kv_channels|d_head)", WIDTH // HEADS),
    (r"(.*_)?(num_|n_)?(key_value|kv)_heads|n_head_kv|multi_query_group_num", KV_HEADS),
    (r"(.*_)?(num_)?(attention_)?heads?|.*num_heads|n_head.*|.*_heads", HEADS),
    (r"(.*_)?(layers|depth|n_layers?|num_blocks|num_stages)", LAYERS),
    (r"(.*_)?(intermediate_size|ffn_dim|inner_dim|d_ff|hidden_dim|d_inner|mlp_dim)", 2 * WIDTH),
    (r"(.*_)?(d_model|n_embd|dim|hidden_size|embedding_size|d_embed)", WIDTH),
    (r"(.*_)?vocab_size(_.*)?", VOCAB),
    (r"n_group|num_expert_groups?|num_group|topk_group", 1),
    (r"(.*_)?experts", 4),
    (r"(.*_)?(experts_per_tok|experts_per_token|top_k|experts_top_k|moe_k)", 2),
    (r"(.*_)?rank", 8),
    (r"image_size", 32),
]
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
_DROPPED = ("transformers_version", "architectures", "dtype", "_name_or_path", "id2label")
_DROPPED += ("label2id", "out_features", "out_indices", "stage_names", "_out_features")
_DROPPED += ("_out_indices", "qk_head_dim")


def tiny_config(config_class):
    """A config of a class with small sizes, and special tokens inside the small vocabulary."""
    if config_class.model_type in PARTS:
        parts = {
            name: tiny_config(getattr(transformers, part)).to_dict()
            for name, part in PARTS[config_class.model_type].items()
        }
        parts["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
        return config_class(**parts, decoder_start_token_id=2, pad_token_id=0)
    fields = {"model_type": config_class.model_type} | config_class().to_dict()
    try:
        return config_class(**shrink(fields))
    except KeyError:
        # It reads of which type its parts are.
        return config_class(**shrink(fields, typed=True))


def shrink(fields, typed=False):
    """The fields of a config, made small, those of configs inside it as well.

    Args:
        fields: The fields.
        typed: Whether the configs inside say of which type they are.
    """
    small, ids, kept = {}, {}, _kept_layers(fields)
    for name, value in fields.items():
        if name in _DROPPED:
            continue
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            small[name] = shrink(value) if name != "per_layer_config" else _few(value, kept)
            if typed and "model_type" in value:
                small[name]["model_type"] = value["model_type"]
        elif re.search("token_(id|index)$|_id$", name) and _is_number(value):
            moved = ids.setdefault(value, FIRST_SPECIAL + len(ids))
            small[name] = value if value < FIRST_SPECIAL else moved
        elif name == "pad_token_id" and value is None:
            small[name] = 0
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            small[name] = _small_rope(value)
        elif name == "num_key_value_heads" and value == fields.get("num_attention_heads"):
            small[name] = HEADS
        elif name in _LAYER_COUNTS and kept is not None:
            small[name] = len(kept)
        elif isinstance(value, (list, tuple)) and len(value) == _layers(fields) and kept:
            small[name] = _smaller(name, [value[index] for index in kept])
        else:
            small[name] = _smaller(name, value)
    for name, value in BY_MODEL_TYPE.get(fields.get("model_type"), {}).items():
        inside = isinstance(value, dict) and name.endswith("_config")
        small[name] = small[name] | value if inside else value
    small.pop("model_type", None)
    return {name: value for name, value in small.items() if value is not DROP}


def _layers(fields):
    return next((fields[name] for name in _LAYER_COUNTS if _is_number(fields.get(name))), None)


def _kept_layers(fields):
    """The first layer of each kind, at least two layers; None if the config does not count them."""
    count = _layers(fields)
    if not count:
        return None
    per_layer = [v for v in fields.values() if isinstance(v, (list, tuple)) and len(v) == count]
    kinds = [repr([one[index] for one in per_layer]) for index in range(count)]
    first = [index for index in range(count) if kinds[index] not in kinds[:index]][:4]
    return sorted(first + [i for i in range(count) if i not in first][: LAYERS - len(first)])


def _few(per_layer, kept):
    """The exceptions of single layers, for the layers that are left."""
    found = {int(index): value for index, value in per_layer.items()}
    return {new: shrink(found[old]) for new, old in enumerate(kept) if old in found}


def _small_rope(rope):
    """Sections of rotary frequencies that add up to half of a head."""
    return {n: [2, 1, 1] if n == "mrope_section" else value for n, value in rope.items()}


def _is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _smaller(name, value):
    if isinstance(value, (list, tuple)):
        return [_smaller(name.removesuffix("s"), one) for one in value]
    if not _is_number(value):
        return value
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value
