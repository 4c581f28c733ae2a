"""`lora-worker gpu-server`: the trainer on a GPU machine of one's own, behind the contract of launchers/gpu_server.py."""
