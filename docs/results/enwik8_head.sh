#!/bin/sh
# Cuts the sound part of enwik8_head (its first 4,154,399 bytes) into training, development and test text, about 90 + 5 + 5 %.
# Every cut is at the end of a line, so that no character is split.
#   enwik8_head.sh DATA OUTPUT     e.g. enwik8_head.sh "$GENUS_DATA" enwik8_head
set -eu
from="$1/enwik8_head/enwik8_corrupt_tail"
mkdir -p "$2"
# Offsets of the first line's beginning at or behind 90 % and 95 %, and of the last line's end in the sound part.
train=3739320 dev=3946710 end=4154327
head -c "$train" "$from" > "$2/train.txt"
head -c "$dev" "$from" | tail -c +"$((train + 1))" > "$2/dev.txt"
head -c "$end" "$from" | tail -c +"$((dev + 1))" > "$2/test.txt"
wc -c "$2/train.txt" "$2/dev.txt" "$2/test.txt"
