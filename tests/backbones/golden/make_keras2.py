"""Write the golden files: small models as Keras 2 saves them, and what they give there.

    pip install tensorflow tf_keras
    python make_keras2.py

Keras 3 cannot write these. outputs.npz has the images, (4, 16, 16, 3) in -1..1, and for every model FILE_STEM/LAYER:
what that layer gives for them in Keras 2, in inference.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

HERE = Path(__file__).parent
LAYERS = keras.layers


def shaken(model):
    """Give every array other values than an initialiser would: statistics of batch normalisation too."""
    draw = np.random.default_rng(0)
    ranges = {True: (0.2, 1.0), False: (-0.4, 0.4)}  # of vectors, of kernels
    model.set_weights([draw.uniform(*ranges[one.ndim == 1], one.shape) for one in model.get_weights()])
    return model


def base(name="base"):
    """Return a functional network with a shortcut, as nested backbones are."""
    images = keras.Input((16, 16, 3), name="images")
    x = LAYERS.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem/conv")(images)
    x = shortcut = LAYERS.BatchNormalization(name="stem/bn")(x)
    x = LAYERS.ReLU(6.0, name="stem_relu")(x)
    x = LAYERS.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = LAYERS.BatchNormalization(name="bn", scale=False)(x)
    x = LAYERS.LeakyReLU(alpha=0.1, name="leaky")(x)
    return keras.Model(images, LAYERS.Add(name="add")([x, shortcut]), name=name)


def sequential():
    """Return a flat one."""
    steps = [
        LAYERS.Conv2D(4, 3, activation="relu", input_shape=(16, 16, 3), name="conv"),
        LAYERS.BatchNormalization(name="bn"),
        LAYERS.SeparableConv2D(5, 3, name="separable"),
        LAYERS.MaxPooling2D(name="pool"),
        LAYERS.Flatten(name="flatten_1"),
        LAYERS.Dense(6, activation="tanh", name="hidden"),
        LAYERS.Dropout(0.5, name="drop"),
        LAYERS.Dense(3, activation="softmax", name="classifier"),
    ]
    return keras.Sequential(steps, name="flat")


def functional():
    """Return a flat functional one, with arithmetic on tensors, a shared layer and slashes in names."""
    images = keras.Input((16, 16, 3), name="images")
    x = tf.math.subtract(tf.math.truediv(images, 2.0), [0.1, 0.2, 0.3])
    shared = LAYERS.Conv2D(3, 3, padding="same", name="block/shared")
    x = LAYERS.Concatenate(name="join")([shared(x), shared(shared(x)) * 0.5])
    x = LAYERS.BatchNormalization(name="bn")(x, training=False)
    x = x * tf.nn.relu(x + 3.0)
    x = LAYERS.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, LAYERS.Dense(3, name="classifier")(x), name="graph")


def nested():
    """Return a backbone in a sequential one."""
    steps = [
        base(),
        LAYERS.GlobalAveragePooling2D(name="pool"),
        LAYERS.Flatten(name="flatten_1"),
        LAYERS.Dense(6, activation="relu", name="hidden"),
        LAYERS.Dense(3, activation="softmax", name="classifier"),
    ]
    return keras.Sequential(steps, name="nested")


def nested_functional():
    """Return a frozen backbone in a functional one, behind a sequential one that augments."""
    augment = keras.Sequential([LAYERS.RandomFlip(name="flip"), LAYERS.Rescaling(0.5, name="scale")], name="augment")
    images = keras.Input((16, 16, 3), name="pixels")
    frozen = base()
    frozen.trainable = False
    x = LAYERS.GlobalMaxPooling2D(name="pool")(frozen(augment(images), training=False))
    x = LAYERS.Dense(6, activation="relu", name="hidden")(x)
    return keras.Model(images, LAYERS.Dense(3, name="classifier")(x), name="nested_functional")


def read_at(model, layer, images):
    """Return what a layer gives for images."""
    x = model.get_layer(layer).output
    return keras.Model(model.inputs, x)(images, training=False).numpy()


def main():
    """Write all of them."""
    images = np.random.default_rng(1).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    found = {"images": images}
    taps = {sequential: ["flatten_1", "hidden"], functional: ["bn", "pool"], nested: ["flatten_1", "hidden"],
            nested_functional: ["pool", "hidden"]}  # fmt: skip
    for make, layers in taps.items():
        keras.backend.clear_session()
        model = shaken(make())
        for suffix in (".h5", ".hdf5", ".keras") if make is nested else (".h5", ".keras"):
            model.save(HERE / f"{make.__name__}{suffix}")
        found |= {f"{make.__name__}/{layer}": read_at(model, layer, images) for layer in [*layers, "classifier"]}
    np.savez_compressed(HERE / "outputs.npz", **found)


if __name__ == "__main__":
    main()
