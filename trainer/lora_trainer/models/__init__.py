"""Base models: finding, sizing, loading and quantising them, and where LoRA goes."""
