"""A run and its fine-tunings in TensorBoard and MLflow."""
