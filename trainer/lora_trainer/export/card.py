"""The texts beside an export: the README of a merged model, and Modelfiles for Ollama."""

from __future__ import annotations

import json

from lora_contract.ollama import modelfile, stop_texts
from lora_trainer.export.adapter import Adapter
from lora_trainer.export.ollama_template import ollama_template
from lora_trainer.models.bases import Base


def merged_card(adapter: Adapter, base: Base, licence: str | None) -> str:
    """The README as Markdown, with the metadata block that the Hugging Face hub reads."""
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"base_model: {json.dumps(base.name)}", "base_model_relation: finetune"]
    if licence:
        front.append(f"license: {json.dumps(licence)}")
    revision = f" at revision `{base.revision}`" if base.revision else ""
    kind = "DoRA" if adapter.uses_dora else "LoRA"
    return "\n".join(
        [
            *front,
            "---",
            "",
            "# Merged model",
            "",
            f"`{base.name}`{revision} with a {kind} adapter merged into its weights: a whole model in bf16, which is "
            "loaded without PEFT.",
            "",
            "| | |",
            "|---|---|",
            f"| modules that carry the adapter | {len(adapter.modules):,} |",
            f"| sha256 of the adapter's weights | `{adapter.sha256}` |",
            "| how it was merged | sums in float32, rounded to bf16 once; the base not quantised |",
            "| not changed | embeddings, norms, routers and the head, beyond their type |",
            "",
            "Tokenizer, chat template and `generation_config.json` are those with which the adapter was trained.",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'folder = "path/of/this/folder"',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
            "```",
            "",
            "vLLM serves it as any model: `vllm serve path/of/this/folder`. In a checkout of llama.cpp, "
            "`python convert_hf_to_gguf.py path/of/this/folder --outtype bf16 --outfile model.gguf` makes a GGUF, "
            "`llama-quantize model.gguf model-Q4_K_M.gguf Q4_K_M` a smaller one; `ollama create NAME` takes the first "
            "by the `Modelfile`.",
            "",
            "`export.json` has the size and the sha256 of each file.",
            "",
        ]
    )


def merged_modelfile(adapter: Adapter) -> str:
    """The Modelfile of a merged model: Ollama reads it as GGUF, which llama.cpp's converter makes."""
    return modelfile(
        "./model.gguf",
        template=ollama_template(adapter.folder),
        stops=stop_texts(adapter.folder),
        remarks=[
            "In a checkout of llama.cpp, DIR being this folder, this makes model.gguf:",
            "python convert_hf_to_gguf.py DIR --outtype bf16 --outfile DIR/model.gguf",
        ],
    )


def gguf_modelfile(adapter: Adapter, adapter_name: str) -> str:
    """The Modelfile of an adapter in GGUF."""
    return modelfile(
        "./base.gguf",
        adapter=f"./{adapter_name}",
        template=ollama_template(adapter.folder),
        stops=stop_texts(adapter.folder),
        remarks=[
            f"base.gguf is {adapter.base_name} as GGUF; or write the name of the same model at Ollama in its place.",
        ],
    )
