"""The language of positions, against a plain-Python reading of it."""

import dataclasses

import pytest
import torch

from conftest import by_the_rule
from pyreft import PositionSpec, Tokens, register_position
from pyreft.positions import Kinds
from pyreft.positions.spans import widest

SPECS = ["f1", "l1", "f7+l7", "f2+l12", "prompt", "completion", "all", "0", "-1", "0+3+-2"]
SPECS += ["f2+completion", "l1+2", "f3+l2+completion+4+-5", "test_even", "f1+test_even"]


def even(tokens):
    return tokens.prompt & (tokens.index % 2 == 0)


@pytest.fixture(autouse=True)
def registered():
    return register_position("test_even", even)


def batch(lengths, completions=0, side="right"):
    """Prompts of the given lengths, each with a completion, padded to one length."""
    width = max(lengths) + completions + 2
    prompt = torch.zeros(len(lengths), width, dtype=torch.bool)
    completion = torch.zeros_like(prompt)
    for row, length in enumerate(lengths):
        start = {"right": 0, "left": width - length - completions, "both": 1}[side]
        prompt[row, start : start + length] = True
        completion[row, start + length : start + length + completions] = True
    return Tokens(prompt, completion)


def chosen(spec, tokens, **kwargs):
    """For each row, the indices of the edited tokens in their own sequence."""
    mask = PositionSpec.parse(spec).select(tokens, **kwargs)
    assert not bool((mask & ~tokens.text).any()), "padding is edited"
    return [tokens.index[row][mask[row]].tolist() for row in range(len(mask))]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_and_its_string_say_the_same(spec):
    parsed = PositionSpec.parse(spec)
    assert PositionSpec.parse(str(parsed)) == parsed
    assert str(parsed) == spec
    assert PositionSpec.parse(parsed) is parsed


def test_order_space_and_synonyms_do_not_matter():
    assert PositionSpec.parse(" l7 + f7 ") == PositionSpec.parse("f7+l7")
    assert PositionSpec.parse("prompt+completion") == PositionSpec.parse("all")
    assert PositionSpec.parse([0, -1]) == PositionSpec.parse("0+-1")
    assert PositionSpec.parse(3) == PositionSpec.parse("3")
    assert PositionSpec.parse([2, 2]) == PositionSpec.parse([2])


@pytest.mark.parametrize(
    "spec", ["", "  ", "+", "f7+", "f", "f0", "l0", "f-1", "f1.5", "first", "f2+f3", "f7,l7", "7f"]
)
def test_a_spec_that_does_not_parse_shows_itself_and_the_grammar(spec):
    with pytest.raises(ValueError, match="f<n>") as raised:
        PositionSpec.parse(spec)
    assert repr(spec) in str(raised.value)


def test_the_parts_of_a_spec_have_the_order_that_files_have():
    """Untied interventions are saved in this order."""
    spec = PositionSpec.parse("4+prompt+l2+test_even+f3+completion+-1")
    parts = ["f3", "l2", "completion", "prompt", "4", "-1", "test_even"]
    assert [str(part) for part in spec.parts()] == parts
    assert [str(part) for part in PositionSpec.parse("all").parts()] == ["completion", "prompt"]


def test_an_empty_list_of_positions_is_refused():
    with pytest.raises(ValueError, match="empty"):
        PositionSpec.parse([])


@pytest.mark.parametrize("spec", [None, True, 1.5, [0.5], [True], ["0"]])
def test_a_spec_of_another_type_is_refused(spec):
    with pytest.raises(TypeError):
        PositionSpec.parse(spec)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PositionSpec)])
def test_a_spec_is_immutable(field):
    spec = PositionSpec.parse("f3+l2+-1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, field, getattr(spec, field))
    assert hash(spec) == hash(PositionSpec.parse("f3+l2+-1"))


def test_a_list_that_changes_after_parsing_changes_no_spec():
    indices = [0, 1]
    spec = PositionSpec.parse(indices)
    indices.append(2)
    assert spec == PositionSpec.parse("0+1")


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("completions", [0, 3])
def test_prefix_and_suffix_follow_the_paper_at_every_prompt_length(side, completions):
    lengths = list(range(1, 20))
    tokens = batch(lengths, completions, side)
    for p in range(9):
        for s in range(9):
            if p or s:
                spec = "+".join([f"f{p}"] * (p > 0) + [f"l{s}"] * (s > 0))
                assert chosen(spec, tokens) == [by_the_rule(n, p, s) for n in lengths], spec


@pytest.mark.parametrize("side", ["left", "right"])
def test_separate_prefix_and_suffix_choose_what_the_sum_chooses(side):
    lengths = list(range(1, 20))
    tokens = batch(lengths, 2, side)
    for p in range(1, 9):
        for s in range(1, 9):
            first = chosen(f"f{p}", tokens, site=(p, s))
            last = chosen(f"l{s}", tokens, site=(p, s))
            for n, front, back in zip(lengths, first, last, strict=True):
                assert front + back == by_the_rule(n, p, s)


def test_the_last_position_is_the_last_token_of_the_prompt():
    lengths = list(range(1, 9))
    assert chosen("l1", batch(lengths, 4)) == [[n - 1] for n in lengths]


def test_the_parts_of_a_spec_choose_what_it_chooses():
    tokens = batch([15, 20, 30], completions=3)
    spec = PositionSpec.parse("f3+l2+completion+5+-4")
    parts = [str(part) for part in spec.parts()]
    assert parts == ["f3", "l2", "completion", "5", "-4"]
    masks = torch.stack([part.select(tokens) for part in spec.parts()])
    assert torch.equal(masks.any(0), spec.select(tokens))
    assert int(masks.sum(0).max()) == 1


def test_prompt_completion_and_all_are_the_tokens_of_their_names():
    tokens = batch([2, 4], completions=3, side="left")
    assert chosen("prompt", tokens) == [[0, 1], [0, 1, 2, 3]]
    assert chosen("completion", tokens) == [[2, 3, 4], [4, 5, 6]]
    assert chosen("all", tokens) == [list(range(5)), list(range(7))]


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_negative_indices_count_from_the_end_of_the_prompt(side):
    tokens = batch([4, 6, 9], completions=2, side=side)
    for index in range(-4, 0):
        assert chosen(index, tokens) == [[n + index] for n in (4, 6, 9)]
    for index in range(4):
        assert chosen(index, tokens) == [[index]] * 3
    assert chosen([0, -4], tokens) == [[0], [0, 2], [0, 5]]


@pytest.mark.parametrize("index", [4, 99, -5])
def test_an_index_outside_the_shortest_prompt_is_refused(index):
    with pytest.raises(ValueError, match=rf"position {index} .* row 1.* 4 tokens.* -4 to 3"):
        PositionSpec.parse(index).select(batch([9, 4], completions=9))


@pytest.mark.parametrize("spec", ["f1", "l1", "f2+l2", "prompt", "0"])
def test_an_empty_prompt_is_refused(spec):
    with pytest.raises(ValueError, match="prompt of row 1 is empty"):
        PositionSpec.parse(spec).select(batch([3, 0], completions=2))


@pytest.mark.parametrize("spec", ["all", "completion"])
def test_an_empty_prompt_will_do_where_the_completion_is_edited(spec):
    assert chosen(spec, batch([0], completions=2)) == [[0, 1]]


def test_a_function_chooses_by_name_or_by_itself():
    tokens = batch([3, 6], completions=1, side="left")
    assert chosen("test_even", tokens) == chosen(even, tokens) == [[0, 2], [0, 2, 4]]
    assert chosen("l1+test_even", tokens) == [[0, 2], [0, 2, 4, 5]]


def test_a_function_sees_the_token_ids():
    ids = torch.tensor([[5, 7, 5, 0], [7, 7, 5, 5]])
    tokens = Tokens(ids != 0, torch.zeros(2, 4, dtype=torch.bool), ids)
    assert chosen(lambda t: (t.input_ids == 7) & t.prompt, tokens) == [[1], [0, 1]]


def test_a_function_and_its_registered_name_are_one_spec():
    one, named = PositionSpec.parse(even), PositionSpec.parse("test_even")
    assert one == named and hash(one) == hash(named) and len({one, named}) == 1
    assert str(one) == "test_even" and one.overlaps(named)
    assert one != PositionSpec.parse("test_even+l1") and one != "test_even"


def test_a_function_may_be_registered_after_it_was_used_and_under_two_names():
    def odd(tokens):
        return tokens.prompt & (tokens.index % 2 == 1)

    spec = PositionSpec.parse(odd)
    for name in ("test_odd_once", "test_odd_again"):
        register_position(name, odd)
        assert PositionSpec.parse(name) == spec != PositionSpec.parse("test_even")
    assert str(spec) == "test_odd_once"


def test_the_order_of_functions_does_not_matter():
    register_position("test_any", lambda tokens: tokens.prompt)
    spec = PositionSpec.parse("test_any+test_even")
    assert spec == PositionSpec.parse("test_even+test_any+test_even")


def test_a_name_that_is_registered_anew_is_the_new_function():
    for function in (even, lambda tokens: tokens.prompt):
        register_position("test_changed", function)
        assert PositionSpec.parse("test_changed") == PositionSpec.parse(function)


def test_a_function_without_a_name_has_no_string():
    with pytest.raises(ValueError, match="register_position"):
        str(PositionSpec.parse(lambda tokens: tokens.prompt))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda tokens: tokens.index, "bool"),
        (lambda tokens: [0], "bool"),
        (lambda tokens: tokens.prompt[:, :1], "shape"),
        (lambda tokens: torch.ones_like(tokens.prompt), "outside the prompt"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PositionSpec.parse(wrong).select(batch([2, 4]))


@pytest.mark.parametrize("name", ["f7", "l1", "prompt", "all", "completion", "", "a+b", "0", "a b"])
def test_a_name_of_the_grammar_cannot_be_registered(name):
    with pytest.raises(ValueError, match="cannot name"):
        register_position(name, even)


def test_a_name_that_is_not_registered_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="test_even"):
        PositionSpec.parse("test_odd")


PARTS = ["f3", "l3", "f1+l1", "prompt", "completion", "all", "0", "-1", "5", "-6", "2+-2"]


@pytest.mark.parametrize("one", PARTS)
def test_specs_overlap_if_they_share_a_token_of_a_long_prompt(one):
    tokens = batch([40], completions=3)
    for other in PARTS:
        share = bool(set(chosen(one, tokens)[0]) & set(chosen(other, tokens)[0]))
        found = PositionSpec.parse(one).overlaps(PositionSpec.parse(other))
        assert found == share, f"{one} and {other}"


def mixed(kinds, rows=("t i i i t t", "i t t t t i")):
    """Rows of image (i) and text (t) tokens; the last token is a completion."""
    ids = torch.tensor([[7 if one == "i" else 5 for one in row.split()] for row in rows])
    prompt = torch.ones_like(ids, dtype=torch.bool)
    prompt[:, -1] = False
    return Tokens(prompt, ~prompt, ids, kinds)


WITH_IMAGES = Kinds(ids={"image": 7})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("image", [[1, 2, 3], [0]]),
        ("text", [[0, 4], [1, 2, 3, 4]]),
        ("image:l1", [[3], [0]]),
        ("image:0+text:-1", [[1, 4], [0, 4]]),
        # The rule of short prompts, for the tokens of the kind.
        ("text:f2+text:l2", [[0, 4], [1, 2, 3, 4]]),
        ("text:f3", [[0], [1, 2, 3]]),
        ("image+l1", [[1, 2, 3, 4], [0, 4]]),
    ],
)
def test_kinds_of_tokens_are_chosen_and_counted_by_themselves(spec, expected):
    spec = PositionSpec.parse(spec)
    assert PositionSpec.parse(str(spec)) == spec
    found = spec.select(mixed(WITH_IMAGES))
    assert [row.nonzero().flatten().tolist() for row in found] == expected


def test_ends_of_a_kind_that_separate_interventions_edit_are_disjoint():
    tokens = mixed(WITH_IMAGES)
    first, last = (PositionSpec.parse(f"text:{end}") for end in ("f2", "l2"))
    ends = widest([first.ends, last.ends])
    one, other = first.select(tokens, ends), last.select(tokens, ends)
    assert not (one & other).any()
    assert torch.equal(one | other, PositionSpec.parse("text:f2+text:l2").select(tokens))


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("image", "text", False),
        ("image", "f7", False),
        ("image", "prompt", True),
        ("image:f2", "image:0", True),
        ("image:f2", "image", True),
        ("image:f2", "text:f2", False),
        ("image:f2", "image:l2", False),
        ("rows0", "rows0", True),
    ],
)
def test_overlaps_of_kinds(one, other, shared):
    one, other = PositionSpec.parse(one), PositionSpec.parse(other)
    assert one.overlaps(other) is other.overlaps(one) is shared


def patches(before=1, height=2, width=3, rows=2):
    prompt = torch.ones(rows, before + height * width, dtype=torch.bool)
    columns = {"class": slice(0, before), "patch": slice(before, None)}
    kinds = Kinds(columns=columns)
    return Tokens(prompt, ~prompt, kinds=kinds, picture=(16 * height, 16 * width))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("class", [0]),
        ("rows1", [4, 5, 6]),
        ("rows0-1", [1, 2, 3, 4, 5, 6]),
        ("columns2", [3, 6]),
        ("rows0xcolumns1-2", [2, 3]),
        ("class+rows1xcolumns0+columns2", [0, 3, 4, 6]),
        ("patch:l1", [6]),
    ],
)
def test_boxes_of_patches(spec, expected):
    spec = PositionSpec.parse(spec)
    assert PositionSpec.parse(str(spec)) == spec
    found = spec.select(patches())
    assert [row.nonzero().flatten().tolist() for row in found] == [expected] * 2


@pytest.mark.parametrize(
    ("spec", "tokens", "message"),
    [
        ("image", mixed(Kinds()), "no image tokens: there are text tokens"),
        ("rows0", mixed(WITH_IMAGES), "no patch tokens"),
        ("image:1", mixed(WITH_IMAGES), "outside the image tokens of the prompt of row 1, which"),
        ("rows0-2", patches(), "'rows0-2' is outside the grid of patches, which has 2 rows and 3"),
        ("columns3", patches(), "outside the grid"),
        ("rows0", dataclasses.replace(patches(), picture=None), "in no grid that is known"),
        ("rows0", dataclasses.replace(patches(), picture=(5, 5)), "in no grid that is known"),
        ("image", dataclasses.replace(mixed(WITH_IMAGES), input_ids=None), "no input_ids"),
    ],
)
def test_kinds_and_boxes_that_are_not_there(spec, tokens, message):
    with pytest.raises(ValueError, match=message):
        PositionSpec.parse(spec).select(tokens)


@pytest.mark.parametrize(
    "wrong", ["image:", "image:all", "image:rows0", "rows", "rows2-1", "rows0columns1", "xrows0"]
)
def test_kinds_and_boxes_that_do_not_parse(wrong):
    with pytest.raises(ValueError, match="a position spec is parts"):
        PositionSpec.parse(wrong)


def test_kinds_are_reserved_names():
    with pytest.raises(ValueError, match="'image' cannot name a position function"):
        register_position("image", lambda tokens: tokens.prompt)
