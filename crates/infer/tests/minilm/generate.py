"""Makes `expected.safetensors`: the vectors of `sentences.txt` by sentence-transformers/all-MiniLM-L6-v2.

    GENUS_MINILM=<folder> python generate.py      # needs torch, transformers, safetensors

As the model's card does it: mean over the real tokens of the last hidden states, then divided by their length; lines are cut
to 256 tokens (`sentence_bert_config.json`). `off` is the largest deviation of this float32 result from float64.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

here = Path(__file__).parent
folder = os.environ["GENUS_MINILM"]
lines = (here / "sentences.txt").read_text(encoding="utf-8").split("\n")[:-1]
tokenizer = AutoTokenizer.from_pretrained(folder)
limit = json.loads(Path(folder, "sentence_bert_config.json").read_text())["max_seq_length"]


def vectors(dtype):
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").to(dtype).eval()
    batch = tokenizer(lines, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


got, exact = vectors(torch.float32), vectors(torch.float64)
off = (got.double() - exact).abs().max()
print(f"{len(lines)} lines, off {off:.3g}")
save_file({"embeddings": got.contiguous(), "off": off.float()[None]}, here / "expected.safetensors")
