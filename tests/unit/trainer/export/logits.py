"""A fresh process that loads exported models as anybody would, and writes what they answer: logits by folder."""

import sys

import torch
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    target, *folders = sys.argv[1:]
    ids = torch.arange(2, 66).reshape(2, 32)
    logits = {}
    for folder in folders:
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not report["missing_keys"], report
        assert not report["unexpected_keys"], report
        with torch.no_grad():
            logits[folder] = model.eval()(ids).logits
    torch.save(logits, target)
