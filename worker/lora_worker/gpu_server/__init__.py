"""`lora-worker gpu-server`: the trainer on a GPU machine of one's own, for workers elsewhere."""
