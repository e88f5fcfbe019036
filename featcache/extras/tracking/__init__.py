"""Log a run and its fine-tunings to TensorBoard and MLflow."""
