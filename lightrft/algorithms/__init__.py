"""Advantages, losses, averaging, selection: tensors in, tensors out; no model, no file, no collective."""
