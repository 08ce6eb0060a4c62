"""The picture of what an adapter edits: as people see it."""

import pytest

from pyreft import ReftConfig
from pyreft.config import InterventionConfig
from pyreft.config.picture import MAX_LAYERS, MAX_ROWS, draw


def picture(layers, decoder=None, **config):
    return draw(ReftConfig(**config).resolve(layers, decoder), layers, decoder)


def representation(layer, positions, component="block_output", rank=4, **more):
    place = {"layer": layer, "component": component, "positions": positions}
    return {**place, "low_rank_dimension": rank, **more}


PICTURES = {
    "one layer, one token": (
        {"layers": 1, "positions": "l1", "rank": 4},
        """
block_output
  layer                0
  prompt     the rest  .
             last      a
  completion           .

a  loreft of rank 4
""",
    ),
    "all of the text": (
        {"layers": 7, "positions": "all"},
        """
block_output
  layer        0    5
  prompt       aaaaaaa
  completion   aaaaaaa

a  loreft of rank 8, weights of its own in each of 7 layers
""",
    ),
    "weights that are not tied, in 48 layers": (
        {"layers": 48, "tied": False},
        f"""
block_output
  layer                0    5    10   15   20   25   30   35   40   45
  prompt     first 7   {"a" * 48}
             the rest  {"." * 48}
             last 7    {"b" * 48}
  completion           {"." * 48}

a  loreft of rank 8, weights of its own in each of 48 layers
b  loreft of rank 8, weights of its own in each of 48 layers
""",
    ),
    "explicit tokens": (
        {"layers": 6, "positions": [0, 1, 4, -3, -1], "kind": "direft", "dropout": 0.1},
        """
block_output
  layer                     0    5
  prompt     first 2        aaaaaa
             tokens 2 to 3  ......
             token 4        aaaaaa
             the rest       ......
             token -3       aaaaaa
             token -2       ......
             last           aaaaaa
  completion                ......

a  direft of rank 8, dropout 0.1, weights of its own in each of 6 layers
""",
    ),
    "several components, one left to the batch": (
        {
            "layers": 6,
            "representations": [
                representation(1, "f3"),
                representation(1, "l1", intervention="noreft"),
                representation(4, "f1", rank=2),
                representation(5, None, "mlp_output"),
            ],
        },
        """
block_output
  layer                     0    5
  prompt     first          .a..c.
             tokens 1 to 2  .a....
             the rest       ......
             last           .b....
  completion                ......

mlp_output
  layer                  0    5
  chosen by  each batch  .....d

a  loreft of rank 4
b  noreft of rank 4
c  loreft of rank 2
d  loreft of rank 4
""",
    ),
    "paths that have the layer in them": (
        {
            "layers": 5,
            "representations": [
                representation(None, "l1", f"model.layers[{layer}].mlp.output") for layer in (1, 3)
            ],
        },
        """
model.layers[layer].mlp.output
  layer                0
  prompt     the rest  .....
             last      .a.a.
  completion           .....

a  loreft of rank 4, weights of its own in each of 2 layers
""",
    ),
    "a path without a layer": (
        {"layers": 5, "component": "lm_head.input", "positions": "l1"},
        """
lm_head.input
  prompt     the rest  .
             last      a
  completion           .

a  loreft of rank 8
""",
    ),
    "an encoder and a decoder": (
        {
            "layers": 2,
            "decoder": 6,
            "representations": [
                representation(0, "f1"),
                representation(3, "completion", "decoder_block_output"),
            ],
        },
        """
block_output
  layer                0
  prompt     first     a.
             the rest  ..

decoder_block_output
  layer        0    5
  prompt       ......
  completion   ...b..

a  loreft of rank 4
b  loreft of rank 4
""",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_shows_which_weights_edit_which_tokens_of_which_layers(name):
    config, expected = PICTURES[name]
    assert picture(**config) == expected.strip("\n")


def test_shared_weights_have_one_letter():
    first = InterventionConfig(0, positions="f1", arguments={"low_rank_dimension": 2})
    again = InterventionConfig(2, positions="l1", arguments={"low_rank_dimension": 2}, tied_to=0)
    shown = draw([first, again], 3)
    assert "a.." in shown
    assert "..a" in shown
    assert shown.endswith("a  loreft of rank 2, the same weights at 2 places")


def test_a_picture_stays_one_whatever_a_file_says():
    """Sizes and names may be anybody's: no picture of gigabytes, no codes for the terminal."""
    evil = "x\x1b[31m```\n# heading." + "y" * 5000
    far = InterventionConfig(10**9, "block_output", "l1", arguments={"low_rank_dimension": 1})
    scattered = InterventionConfig(0, "mlp_output", "+".join(map(str, range(0, 4000, 2))))
    named = InterventionConfig(None, evil, "l1")
    shown = draw([far, scattered, named], 10**12)
    assert len(shown.splitlines()) < 2 * MAX_ROWS
    assert max(map(len, shown.splitlines())) < MAX_LAYERS + 50
    assert "more layers to the right" in shown
    assert "more rows" in shown
    assert shown.isascii()
    assert not {"\x1b", "`"} & set(shown)


def test_more_weights_than_letters():
    many = [
        InterventionConfig(layer, positions="l1", arguments={"low_rank_dimension": layer + 1})
        for layer in range(60)
    ]
    shown = draw(many, 60)
    assert "YZ########" in shown
    assert shown.splitlines()[-1].startswith("#  more of them")
