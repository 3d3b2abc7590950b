"""PyTorch's side of an LSTM training step: `genus bench train bilstm --vocab-size 8000 --batch 16 --context 128`.

    env/bin/python bench/lstm_peer.py     # prints the median of its steps in seconds; run it and genus in turns

Two opposite stacks of two layers of 512 cells over one table of tokens, which is also the output; each direction predicts the token
that it has not seen. Forward, backward, clipping to norm 1 and fused AdamW, two threads, f32, no dropout.
"""

import statistics
import time

import torch
from torch import nn

VOCAB, WIDTH, LAYERS, BATCH, CONTEXT = 8000, 512, 2, 16, 128


class BiLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.ahead = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True)
        self.back = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def loss(self, states, wanted):
        logits = nn.functional.linear(states[:, :-1].reshape(-1, WIDTH), self.table.weight, self.bias)
        return nn.functional.cross_entropy(logits, wanted[:, 1:].reshape(-1))

    def forward(self, ids):
        x = self.table(ids)
        return (self.loss(self.ahead(x)[0], ids) + self.loss(self.back(x.flip(1))[0], ids.flip(1))) / 2


def main():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = BiLstm()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(VOCAB, (BATCH, CONTEXT))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        optimiser.zero_grad()
        model(ids).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        seconds.append(time.perf_counter() - begin)
    print(f"{statistics.median(seconds[1:]):.3f} s  {[round(s, 3) for s in seconds]}")


if __name__ == "__main__":
    main()
