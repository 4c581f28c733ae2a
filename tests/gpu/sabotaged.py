"""The real training process on a GPU whose memory ends, as `SABOTAGE` says: above so many tokens a forward pass."""

import os
import sys

import torch

from lora_trainer.recipe.train import main

LIMIT = int(os.environ["SABOTAGE"])


def exhaust_memory() -> None:
    """From the third step on the driver is asked for more than the card has: its own error, and its own words."""
    forward, calls = torch.nn.Embedding.forward, 0

    def limited(self, tokens):
        nonlocal calls
        calls += self.training
        if self.training and calls > 2 and tokens.numel() > LIMIT:
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")
        return forward(self, tokens)

    torch.nn.Embedding.forward = limited


exhaust_memory()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
