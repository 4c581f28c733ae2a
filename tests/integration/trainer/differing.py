"""Loads adapters as anybody would, and prints for each how far its answers are from the base's.

`python -m tests.integration.trainer.differing BASE FOLDER...`
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    base, *folders = sys.argv[1:]
    for folder in folders:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        ids = AutoTokenizer.from_pretrained(folder)("How do I save?", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            adapted = model(ids).logits
            with model.disable_adapter():
                print(float((adapted - model(ids).logits).abs().max()))
