"""Converts the packaged model's weights from GGUF, which vLLM no longer reads, to safetensors.

Run by the interpreter that has vLLM: `python convert_weights.py GGUF FOLDER`. The folder appears at once and whole, or
not at all; the same packages make the same bytes, so policy can list their digest on any machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, folder: Path) -> None:
    """Write configuration, tokenizer, chat template and weights in bfloat16."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        draft = Path(elsewhere) / folder.name
        # Quantised tensors have no form in safetensors that it would save.
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(**where).save_pretrained(draft)
        os.rename(draft, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="GGUF")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="is made; must not exist")
    args = parser.parse_args()
    convert(args.source, args.folder)


if __name__ == "__main__":
    main()
