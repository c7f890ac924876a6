"""Ablations: a study's YAML -> commands -> runs -> one table, figures and TensorBoard's HParams."""
