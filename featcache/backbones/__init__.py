"""Names -> frozen Keras models: registry, blocks, weights, build, the embedded backbone."""
