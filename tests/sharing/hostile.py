"""Untrusted adapters: what can be wrong with one, as (name, what it does to a directory).

A damage is given a directory that holds a good adapter: of "plain" interventions, with a "head",
or with a "lora".
"""

import io
import json
import os
import pickle
import random
import socket
import struct

import safetensors.torch
import torch
from round_trip import CONFIG, WEIGHTS

# What a pickle would run, which leaves a trace.
TRACE = "PYREFT_HOSTILE"


class Evil:
    def __reduce__(self):
        return os.putenv, (TRACE, "ran")


def change_config(change):
    def damage(directory):
        entry = json.loads((directory / CONFIG).read_text())
        change(entry)
        (directory / CONFIG).write_text(json.dumps(entry))

    return damage


def change_text(change):
    return change_bytes(CONFIG, lambda data: change(data.decode()).encode("utf-8", "surrogatepass"))


def change_bytes(name, change):
    def damage(directory):
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def change_tensors(change):
    def damage(directory):
        tensors = safetensors.torch.load_file(directory / WEIGHTS)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)
        safetensors.torch.save_file(tensors, directory / WEIGHTS)

    return damage


def change_header(change):
    """The header of the weights, without what would tell at once that it was changed."""

    def damage(data):
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__")
        header = change(header, header["A"] if "A" in header else next(iter(header.values())))
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return change_bytes(WEIGHTS, damage)


def put(*path, value):
    """Set one field of the config; the first intervention is meant by "interventions"."""

    def change(entry):
        for name in path[:-1]:
            entry = entry[name][0] if name == "interventions" else entry[name]
        entry[path[-1]] = value

    return change_config(change)


def drop(*path):
    def change(entry):
        for name in path[:-1]:
            entry = entry[name][0] if name == "interventions" else entry[name]
        del entry[path[-1]]

    return change_config(change)


# ---- files that are something else ---------------------------------------------------------------


def torch_file(legacy=False):
    file = io.BytesIO()
    torch.save({"weight": Evil()}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def other_files():
    contents = {f"a pickle {n}": pickle.dumps(Evil(), protocol=n) for n in range(6)}
    contents |= {"a torch file": torch_file(), "an old torch file": torch_file(legacy=True)}
    contents |= {
        "empty": b"",
        "zeros": bytes(1000),
        "noise": random.Random(0).randbytes(1000),
        "a zip": b"PK\x03\x04" + bytes(100),
        "a program": b"\x7fELF" + bytes(100),
        "a web page": b"<!doctype html><title>404</title>",
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "source": b"import os; os.putenv('" + TRACE.encode() + b"', 'ran')\n",
    }
    for name in (CONFIG, WEIGHTS):
        for what, content in contents.items():
            yield f"{name} is {what}", change_bytes(name, lambda data, content=content: content)


def not_files():
    def remove(name):
        return lambda directory: (directory / name).unlink()

    def replaced(name, make):
        def damage(directory):
            (directory / name).rename(directory.parent / f"outside-{directory.name}-{name}")
            make(directory / name, directory.parent / f"outside-{directory.name}-{name}")

        return damage

    def bind(path):
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            server.bind(path.name)
            os.chdir(here)

    kinds = {
        "a directory": lambda path, outside: path.mkdir(),
        "a fifo": lambda path, outside: os.mkfifo(path),
        "a socket": lambda path, outside: bind(path),
        "a link outside": lambda path, outside: path.symlink_to(outside),
        "a relative link outside": lambda path, outside: path.symlink_to(f"../{outside.name}"),
        "a dangling link": lambda path, outside: path.symlink_to("nothing"),
        "a link to itself": lambda path, outside: path.symlink_to(path.name),
        "a link to endless zeros": lambda path, outside: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda path, outside: path.symlink_to("/dev/null"),
        "a link to a secret": lambda path, outside: path.symlink_to("/etc/passwd"),
    }
    for name in (CONFIG, WEIGHTS):
        yield f"{name} is missing", remove(name)
        for what, make in kinds.items():
            yield f"{name} is {what}", replaced(name, make)


# ---- JSON ----------------------------------------------------------------------------------------


def broken_json():
    deep = 100_000
    texts = {
        "null": lambda text: "null",
        "a number": lambda text: "1",
        "a string": lambda text: '"loreft"',
        "a list": lambda text: f"[{text}]",
        "an empty object": lambda text: "{}",
        "deep lists": lambda text: "[" * deep,
        "deep and closed lists": lambda text: '{"a": ' + "[" * deep + "]" * deep + "}",
        "deep objects": lambda text: '{"a":' * deep + "1" + "}" * deep,
        "two objects": lambda text: text + text,
        "a tail": lambda text: text + "x",
        "a comment": lambda text: "// hello\n" + text,
        "single quotes": lambda text: text.replace('"', "'"),
        "a trailing comma": lambda text: text.replace("\n}\n", ",\n}\n"),
        "a key without quotes": lambda text: text.replace('"kind"', "kind"),
        "a key that is a number": lambda text: text.replace('"kind"', "1"),
        "a field twice": lambda text: text.replace('"kind"', '"kind": "noreft",\n"kind"'),
        "a version twice": lambda text: text.replace("{", '{"format_version": "1.0",', 1),
        "NaN": lambda text: text.replace('"dropout": 0.0', '"dropout": NaN'),
        "Infinity": lambda text: text.replace('"dropout": 0.0', '"dropout": Infinity'),
        "minus Infinity": lambda text: text.replace('"dropout": 0.0', '"dropout": -Infinity'),
        "a float too large": lambda text: text.replace('"dropout": 0.0', '"dropout": 1e999'),
        "an int too long": lambda text: text.replace('"layer": 0', '"layer": ' + "9" * 5000),
        "half a surrogate": lambda text: text.replace("loreft", "\\ud800"),
        "a raw surrogate": lambda text: text.replace("loreft", "\ud800"),
        "a control character": lambda text: text.replace("loreft", "lo\x00reft"),
        "an escaped zero": lambda text: text.replace("loreft", "lo\\u0000reft"),
        "a mark of order": lambda text: "\ufeff" + text,
        "too many spaces": lambda text: text + " " * 5_000_000,
        "a list too long": lambda text: text.replace('"l1"', '"' + "1+" * 3_000_000 + '1"'),
    }
    for what, change in texts.items():
        yield f"JSON: {what}", change_text(change)
    yield "JSON: UTF-16", change_bytes(CONFIG, lambda data: data.decode().encode("utf-16"))
    yield (
        "JSON: no UTF-8",
        change_bytes(CONFIG, lambda data: data.replace(b"loreft", b"lo\xff\xfereft")),
    )
    yield (
        "JSON: too long UTF-8",
        change_bytes(CONFIG, lambda data: data.replace(b"loreft", b"\xc0\xafloreft")),
    )
    for eighth in range(8):
        yield (
            f"JSON: cut after {eighth} eighths",
            change_bytes(CONFIG, lambda data, eighth=eighth: data[: len(data) * eighth // 8]),
        )


# ---- fields --------------------------------------------------------------------------------------

WRONG = [None, True, 1.5, -1, 10**9, 2**70, "", "x/../../etc/passwd", "../x", "a\x00b", "\n"]
WRONG += [[], {}, [[]], [None], {"a": 1}, "torch.nn.Linear"]
# Of these, what the field may be.
RIGHT = {
    "library_versions": [{}],
    "name_or_path": [None, "torch.nn.Linear"],
    "revision": [None, "torch.nn.Linear"],
    "modules_to_save": [None],
    "lora": [None],
    "heads": [None],
    "tied_to": [None],
    "task": [None, "torch.nn.Linear"],
    "problem_type": [None, "torch.nn.Linear"],
    "labels": [[]],
    "act_fn": [None],
    "add_bias": [True],
}
FIELDS = [
    ("format_version",),
    ("library_versions",),
    ("base_model",),
    ("interventions",),
    ("modules_to_save",),
    ("lora",),
    ("fingerprint",),
    *[("base_model", name) for name in ("name_or_path", "revision", "task", "labels")],
    *[("base_model", name) for name in ("problem_type", "architecture", "model_type")],
    *[("base_model", name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")],
    *[("interventions", name) for name in ("layer", "component", "positions", "kind")],
    *[("interventions", name) for name in ("arguments", "heads", "tied_to")],
    *[("interventions", "arguments", name) for name in ("embed_dim", "low_rank_dimension")],
    *[("interventions", "arguments", name) for name in ("dropout", "act_fn", "dtype", "add_bias")],
]


def wrong_fields():
    for path in FIELDS:
        for value in WRONG:
            right = any(value is good or value == good for good in RIGHT.get(path[-1], ()))
            # Positions that are null are left to the batch, which load_weights allows.
            if not right and not (path[-1] == "positions" and value is None):
                yield f"{'.'.join(path)} is {value!r}", put(*path, value=value)
    for path in [("format_version",), ("base_model",), ("interventions",), ("fingerprint",)]:
        yield f"no {path[0]}", drop(*path)
    for name in ("component", "kind", "arguments", "layer"):
        yield f"an intervention without {name}", drop("interventions", name)
    for name in ("embed_dim", "low_rank_dimension"):
        yield f"no {name}", drop("interventions", "arguments", name)
    for where in [(), ("base_model",), ("interventions",), ("interventions", "arguments")]:
        for name in ("__class__", "auto_map", "device", "_target_", "trust_remote_code", "0"):
            yield f"{'.'.join(where)} has {name}", put(*where, name, value="os.system")


def names_of_code():
    kinds = ["__main__.Evil", "os.system", "builtins.eval", "pyreft.LoreftIntervention", "Evil"]
    kinds += ["LoreftIntervention", "../loreft", "Loreft", "loreft ", "loreft\n", "hostile.Evil"]
    for name in kinds:
        yield f"the kind {name!r}", put("interventions", "kind", value=name)
    components = [
        "../../etc/passwd",
        "../block.output",
        "__class__.output",
        "__class__.__init__.__globals__.output",
        "model.__dict__.output",
        "model.layers[-1].output",
        "model.layers[99].output",
        "model.layers[" + "9" * 4000 + "].output",
        "model.layers.output",
        "model..output",
        ".output",
        "model.layers[0].self_attn.q_proj.weight.output",
        "a." * 100_000 + "output",
        "[" * 10_000 + ".output",
        "decoder_block_output",
        "BLOCK_OUTPUT",
        "os.system('true').output",
    ]
    for name in components:
        yield f"the component {name[:50]!r}", put("interventions", "component", value=name)
    positions = ["f0", "f", "l1+l1", "f1+", "+", "f99999999999999999999", "lambda t: t", "f\u0663"]
    positions += ["eval", "os.system", "1.5", "prompt;all", "-", "f-1", "f1" + "+f1" * 10_000]
    for name in positions:
        yield f"the positions {name[:30]!r}", put("interventions", "positions", value=name)
    for name in ("os.system", "__class__", "gelu;", "../relu", "torch.nn.ReLU"):
        yield f"the act_fn {name!r}", put("interventions", "arguments", "act_fn", value=name)
    for name in ("int8", "complex64", "float", "load", "float32;", "hub.load", "torch.hub"):
        yield f"the dtype {name!r}", put("interventions", "arguments", "dtype", value=name)
    for name in (
        "../../etc",
        "__class__",
        "forward",
        "model.layers[0]",
        "(a+)+$",
        ".*",
        "lm_head.",
    ):
        yield f"modules_to_save has {name!r}", put("modules_to_save", value=[name])


def huge():
    size = 10**9
    yield "10^9 layers of the base", put("base_model", "num_hidden_layers", value=size)
    yield "layer 10^9", put("interventions", "layer", value=size)
    for embed_dim, rank in [(size, 2), (size, size), (32, size), (2**40, 2**39), (10**30, 10**30)]:
        arguments = {"embed_dim": embed_dim, "low_rank_dimension": rank}
        yield (
            f"embed_dim {embed_dim}, rank {rank}",
            put("interventions", "arguments", value=arguments),
        )
    # A path whose width only running would tell.
    yield (
        "a huge width where none is known",
        change_config(
            lambda entry: entry["interventions"][0].update(
                layer=None,
                component="model.norm.output",
                arguments={"embed_dim": 10**11, "low_rank_dimension": 10},
            )
        ),
    )

    def repeated(count, **fields):
        def change(entry):
            (one, *_) = entry["interventions"]
            entry["interventions"] = [one | fields] * count

        return change_config(change)

    yield "12,000 interventions", repeated(12_000)
    yield "12,000 tied interventions", repeated(12_000, tied_to=0)

    def at_one_place(entry):
        (one,) = entry["interventions"]
        more = ({**one, "positions": str(index), "tied_to": 0} for index in range(9_000))
        entry["interventions"] += more

    yield "9,000 interventions at one place", change_config(at_one_place)
    yield (
        "2,000 interventions of full rank",
        repeated(2_000, arguments={"embed_dim": 32, "low_rank_dimension": 32}),
    )
    yield "a head 10^9", put("interventions", "heads", value=[size])
    yield "100,000 heads", put("interventions", "heads", value=list(range(100_000)))
    yield "one module 100,000 times", put("modules_to_save", value=["lm_head"] * 100_000)
    yield "100,000 modules", put("modules_to_save", value=[f"m{n}" for n in range(100_000)])
    yield "tied to 10^9", put("interventions", "tied_to", value=size)
    yield "tied to itself", put("interventions", "tied_to", value=0)
    yield (
        "a rank of 4,000 digits",
        put("interventions", "arguments", "low_rank_dimension", value=10**4000),
    )


def other_versions():
    for version in ("3.0", "0.9", "10.0", "1", "1.0.0", "1.-1", "01.0", "1.00", "x", "1.0\n"):
        yield f"format {version!r}", put("format_version", value=version)
    yield "format '\u0661.0'", put("format_version", value="\u0661.0")
    for version in ("1.99999999999", "9" * 4000 + ".0"):
        yield f"format {version[:20]}", put("format_version", value=version)


# ---- weights -------------------------------------------------------------------------------------


def cut_weights():
    def cut(where):
        return change_bytes(WEIGHTS, lambda data: data[: where(data)])

    def header(data):
        return 8 + int.from_bytes(data[:8], "little")

    for size in (1, 7, 8, 9, 100):
        yield f"weights of {size} bytes", cut(lambda data, size=size: size)
    for more in (-100, -1, 0, 1, 4, 100):
        yield (
            f"weights cut at their header {more:+}",
            cut(lambda data, more=more: header(data) + more),
        )
    for eighth in range(1, 8):
        yield (
            f"weights cut after {eighth} eighths",
            cut(lambda data, eighth=eighth: len(data) * eighth // 8),
        )
    for less in (1, 4, 8):
        yield f"weights without their last {less} bytes", cut(lambda data, less=less: -less)
    yield "weights with a tail", change_bytes(WEIGHTS, lambda data: data + b"x")
    yield "weights twice", change_bytes(WEIGHTS, lambda data: data * 2)


def flipped_bytes():
    draw = random.Random(0)
    for place in range(60):
        share, bit = draw.random(), 1 << draw.randrange(8)

        def flip(data, share=share, bit=bit):
            index = int(share * len(data))
            return data[:index] + bytes([data[index] ^ bit]) + data[index + 1 :]

        yield f"a flipped bit, {place}", change_bytes(WEIGHTS, flip)


def broken_headers():
    for size in (0, 1, 2**31, 2**63, 2**64 - 1, 200_000_000):
        yield (
            f"a header of {size} bytes",
            change_bytes(WEIGHTS, lambda data, size=size: struct.pack("<Q", size) + data[8:]),
        )
    texts = [b"{}", b"[]", b"null", b"[" * 10_000, b'{"a":' * 10_000, b"\xff" * 10, b" " * 10]
    for text in texts:
        yield f"the header {text[:10]!r}", change_header(lambda header, one, text=text: text)
    shapes = [[10**9, 10**9], [2**63, 2], [2**64], [-1], [-2, -32], [2.0, 32], ["2", 32], [True]]
    shapes += ["2", None, {}, [[2, 32]], [10**12, 0], [0], [], [2] * 10_000]
    for shape in shapes:
        yield (
            f"a tensor of shape {str(shape)[:30]}",
            change_header(lambda header, one, shape=shape: one.update(shape=shape) or header),
        )
    offsets = [[0, 2**63], [2**63, 0], [8, 4], [-8, 0], [0, 0], [0, 10**12], [0], [0.0, 4.0], None]
    for pair in [*offsets, "0,4", [0, 4, 8]]:
        yield (
            f"a tensor at {pair}",
            change_header(lambda header, one, pair=pair: one.update(data_offsets=pair) or header),
        )
    for dtype in ("F128", "OBJECT", "f32", "", None, 32, "__main__.Evil", "C64", "F4", "F8_E5M2"):
        yield (
            f"a tensor of type {dtype!r}",
            change_header(lambda header, one, dtype=dtype: one.update(dtype=dtype) or header),
        )
    for field in ("dtype", "shape", "data_offsets"):
        yield (
            f"a tensor without {field}",
            change_header(lambda header, one, field=field: one.pop(field) and header),
        )
    yield (
        "two tensors at one place",
        change_header(lambda header, one: dict.fromkeys(header, one)),
    )
    yield (
        "metadata that are no text",
        change_header(lambda header, one: header | {"__metadata__": {"reft_config": {}}}),
    )
    yield (
        "a config inside without a fingerprint",
        change_header(lambda header, one: header | {"__metadata__": {"reft_config": "{}"}}),
    )
    yield (
        "a fingerprint inside of nothing",
        change_header(lambda header, one: header | {"__metadata__": {"fingerprint": "0"}}),
    )


def sparse(directory):
    """A terabyte that takes no room on the disk, all of it declared."""
    size = 2**40
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    with open(directory / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def wrong_tensors():
    def each(name, change):
        for end in ("rotate_layer.original", "learned_source.weight", "learned_source.bias"):

            def on(tensors, end=end):
                full = next(full for full in tensors if full.endswith(end))
                changed = change(tensors.pop(full))
                tensors.update({full: changed} if isinstance(changed, torch.Tensor) else {})

            yield f"{end} {name}", change_tensors(on)

    yield from each("is missing", lambda tensor: None)
    yield from each("is empty", lambda tensor: tensor[:0])
    yield from each("is one number", lambda tensor: torch.tensor(1.0))
    yield from each("has an axis more", lambda tensor: tensor[None])
    yield from each("is flat and longer", lambda tensor: torch.ones(100))
    yield from each("is shorter", lambda tensor: tensor[:-1].contiguous())
    for dtype in ("float16", "bfloat16", "float64", "int32", "int64", "uint8", "bool", "complex64"):
        kind = getattr(torch, dtype)
        yield from each(f"is {dtype}", lambda tensor, kind=kind: tensor.to(kind))
    for number in ("nan", "inf", "-inf"):
        yield from each(
            f"has {number}", lambda tensor, number=number: tensor.clone().fill_(float(number))
        )
    for name in ("extra", "../../etc/passwd", "base_model.lm_head.weight", "peft.x", "__class__"):
        yield (
            f"a tensor {name} more",
            change_tensors(lambda tensors, name=name: tensors.update({name: torch.ones(2)})),
        )
    yield "no tensor", change_tensors(lambda tensors: tensors.clear())
    yield "one terabyte of zeros", sparse


def plain_cases():
    yield from other_files()
    yield from not_files()
    yield from broken_json()
    yield from wrong_fields()
    yield from names_of_code()
    yield from huge()
    yield from other_versions()
    yield from cut_weights()
    yield from flipped_bytes()
    yield from broken_headers()
    yield from wrong_tensors()


# ---- trained parts of the base model, and a LoRA -------------------------------------------------


def head_cases():
    name = "base_model.lm_head.weight"
    for number in ("nan", "inf"):
        yield (
            f"a head with {number}",
            change_tensors(lambda tensors, n=number: tensors[name].fill_(float(n))),
        )
    yield "a head of no tensor", change_tensors(lambda tensors: tensors.pop(name))
    yield "a head of ints", change_tensors(lambda t: t.update({name: t[name].int()}))
    yield "a head turned", change_tensors(lambda t: t.update({name: t[name].T.contiguous()}))
    yield (
        "another part of the base",
        change_tensors(lambda t: t.update({"base_model.model.norm.weight": torch.ones(32)})),
    )
    yield "a head that is not named", drop("modules_to_save")
    for value in (["lm_head", "lm_head"], ["lm_head", "model.norm"], ["model"], "lm_head", [None]):
        yield f"modules_to_save {value!r}", put("modules_to_save", value=value)


def lora_cases():
    wrong = {
        "r": [0, -1, 10**9, True, 2.0, "2", None, 3],
        "lora_alpha": [0, -1, True, "8", None],
        "lora_dropout": [1, -0.1, True, "x", None],
        "bias": ["some", True, None],
        "fan_in_fan_out": [1, None, "x"],
        "use_rslora": [0, None],
        "use_dora": ["x", True],
        "lora_bias": [2, True],
        "task_type": ["__main__.Evil", 1, "os.system"],
        "target_modules": [[], ".*", "q_proj", ["q_proj"], [".*"], ["(a+)+$"], ["model"], [1]],
        "rank_pattern": [{".*": 2}, {"(a+)+$": 2}, [], None, {"q_proj": 10**9}],
        "alpha_pattern": [{".*": 2}, {"(a+)+$": 2}, [], None],
        "modules_to_save": [[".*"], ["(a+)+$"], ["../x"], "lm_head", [1], ["lm_head"], []],
    }
    wrong["target_modules"] += [["../q_proj"], ["model.norm"], ["lm_head"], None]
    wrong["target_modules"] += [["model.layers.0.self_attn.q_proj"] * 2]
    for name, values in wrong.items():
        yield f"a LoRA without {name}", drop("lora", name)
        for value in values:
            yield f"a LoRA with {name} {str(value)[:40]}", put("lora", name, value=value)
    more = {
        "megatron_core": "hostile",
        "megatron_config": {"a": 1},
        "auto_mapping": {"parent_library": "hostile", "base_model_class": "Evil"},
        "layer_replication": [[0, 10**9]],
        "init_lora_weights": "loftq",
        "peft_type": "PROMPT_TUNING",
        "corda_config": {"cache_file": "evil.pt"},
        "target_parameters": [".*"],
    }
    for name, value in more.items():
        yield f"a LoRA with {name}", put("lora", name, value=value)
    yield "a LoRA that is not described", drop("lora")

    def first(tensors):
        return next(name for name in tensors if name.startswith("peft."))

    yield "a LoRA that lacks a tensor", change_tensors(lambda t: t.pop(first(t)))
    yield "a LoRA with a NaN", change_tensors(lambda t: t[first(t)].fill_(float("nan")))
    yield "a LoRA of ints", change_tensors(lambda t: t.update({first(t): t[first(t)].int()}))
    yield "a LoRA too wide", change_tensors(lambda t: t.update({first(t): torch.ones(2, 999)}))
    yield "a LoRA of no width", change_tensors(lambda t: t.update({first(t): torch.ones(2, 0)}))
    yield (
        "a LoRA of a huge rank and no numbers",
        lambda directory: [
            put("lora", "r", value=10**9)(directory),
            change_tensors(lambda t: t.update({first(t): torch.ones(10**9, 0)}))(directory),
        ],
    )
    yield "a tensor of PEFT's more", change_tensors(lambda t: t.update({"peft.x": torch.ones(2)}))


CASES = {"plain": dict(plain_cases()), "head": dict(head_cases()), "lora": dict(lora_cases())}
