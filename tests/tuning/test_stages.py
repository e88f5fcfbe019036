import keras
import pytest

from featcache.errors import UnknownBlock, UsageError
from featcache.tuning.stages import unfreeze


@pytest.fixture
def network():
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="input")
    x = layers.BatchNormalization(name="stem_bn")(layers.Conv2D(2, 3, name="stem_conv")(image))
    x = layers.BatchNormalization(name="block_1_bn")(layers.Conv2D(2, 1, name="block_1_conv")(x))
    x = layers.BatchNormalization(name="block_2_bn")(layers.Conv2D(2, 1, name="block_2_conv")(x))
    network = keras.Model(image, layers.ReLU(name="block_2_relu")(x))
    network.trainable = False
    return network


def trained(network):
    return {variable.path.split("/")[0] for variable in network.trainable_weights}


@pytest.mark.parametrize(
    ("what", "convolutions", "weights"),
    [
        ("none", set(), 0),
        ("last", {"block_2_conv"}, 6),
        ("block_2", {"block_2_conv"}, 6),
        ("block_1", {"block_1_conv", "block_2_conv"}, 12),
        ("block_1_conv", {"block_1_conv", "block_2_conv"}, 12),
        ("block_1_bn", {"block_2_conv"}, 6),
        ("all", {"stem_conv", "block_1_conv", "block_2_conv"}, 68),
        ("stem", {"stem_conv", "block_1_conv", "block_2_conv"}, 68),
        ("0", set(), 0),
        ("2", set(), 0),
        ("3", {"block_2_conv"}, 6),
        ("5", {"block_1_conv", "block_2_conv"}, 12),
        ("8", {"stem_conv", "block_1_conv", "block_2_conv"}, 68),
    ],
)
def test_what_is_named_trains_and_normalisation_never_does(what, convolutions, weights, network):
    unfrozen = unfreeze(network, what)
    assert unfrozen.num_weights == weights
    assert bool(unfrozen.block) == bool(weights)  # a block of which nothing trains is not named
    assert trained(network) == convolutions


def test_unfreezing_less_freezes_the_rest_again(network):
    unfreeze(network, "all")
    unfreeze(network, "last")
    assert trained(network) == {"block_2_conv"}


def test_an_unknown_block_is_refused_with_near_names(network):
    with pytest.raises(UnknownBlock, match=r"blok_2.*block_2"):
        unfreeze(network, "blok_2")


@pytest.mark.parametrize("what", ["9", "-1", "99"])
def test_more_layers_than_there_are_are_refused(what, network):
    with pytest.raises(UsageError, match=rf"`unfreeze` takes up to 8 layers of this backbone; got {what}"):
        unfreeze(network, what)


@pytest.mark.parametrize("what", ["--5", "1.5", ""])
def test_what_is_no_number_is_no_block_either(what, network):
    with pytest.raises(UnknownBlock):
        unfreeze(network, what)


def test_a_layers_place_may_be_given_as_tutorials_do_and_the_nearest_block_is_named(network):
    found = unfreeze(network, "4:")
    assert found == unfreeze(network, str(len(network.layers) - 4))
    assert found.note.startswith("Layer 4 of ")
    assert found.block in found.note
    named = unfreeze(network, found.note.rpartition(" ")[2])
    assert named.note == ""


def test_a_block_that_begins_there_needs_no_note(network):
    first = [layer.name for layer in network.layers].index("block_2_conv")
    assert unfreeze(network, f"{first}:") == unfreeze(network, "block_2")


def test_layers_of_which_none_trains_are_named(network):
    found = unfreeze(network, "2")
    assert found.num_weights == 0
    assert found.note.startswith("Nothing of the backbone trains from layer ")
