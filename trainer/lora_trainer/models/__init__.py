"""Base models: finding, planning memory, loading and quantising them, and attaching LoRA."""
