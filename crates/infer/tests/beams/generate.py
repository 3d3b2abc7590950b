"""Makes `beams.json`: beam searches of `transformers` on the checkpoint of tests/parity/gpt2-causal-lm.

    python generate.py      # needs torch, transformers
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
model = AutoModelForCausalLM.from_pretrained(here / "../../../../tests/parity/gpt2-causal-lm").double().eval()
cases = []
for prompt in ([79], [11, 74, 44, 93, 67], [59, 51, 42], [86, 52, 6, 90, 93, 33, 80, 61]):
    for beams, penalty, new in ((2, 1.0, 12), (4, 0.0, 9), (4, 2.0, 15), (5, -1.0, 15)):
        eos = 10 if len(prompt) != 5 else 71
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=beams, num_return_sequences=beams, length_penalty=penalty, max_new_tokens=new, eos_token_id=eos,
            pad_token_id=0, early_stopping=False, return_dict_in_generate=True, output_scores=True,
        )
        found = []
        for ids, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
            ids = ids[len(prompt):]
            ids = ids[: ids.index(eos) + 1] if eos in ids else ids
            found.append({"ids": ids, "score": float(f"{score:.6g}")})
        cases.append({"prompt": prompt, "beams": beams, "length_penalty": penalty, "max_new_tokens": new, "eos": eos, "found": found})
(here / "beams.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
