#!/bin/sh
# Measures the models of xl.toml and vanilla.toml: a JSON object a line. Begin in the folder that holds enwik8_head/ and runs/.
#   xl_evaluate.sh quality | speed | context
# GENUS is the program (default: genus), XL and VANILLA are the checkpoints.
set -eu
genus=${GENUS:-genus}
xl=${XL:-runs/xl/checkpoint-2400}
vanilla=${VANILLA:-runs/vanilla/checkpoint-2400}
test="--data enwik8_head/test.txt"
perplexity() { "$genus" eval perplexity "$@" --json; }
case "$1" in
quality)
    # All of the test text: windows without overlap, windows that begin 16 apart, segments with more and more memory.
    perplexity "$vanilla" $test
    perplexity "$vanilla" $test --stride 16
    for memory in 0 64 128 256 512 1024; do
        perplexity "$xl" $test --memory "$memory" --segment-length 128
    done
    ;;
speed)
    # The time of a token that sees as many before it: with memory, in segments and alone, and with windows that are recomputed.
    for n in 800 1800 2800 3800; do
        perplexity "$xl" $test --memory "$n" --segment-length 128 --skip "$n" --tokens 6400
        perplexity "$xl" $test --memory "$n" --segment-length 1 --skip "$n" --tokens 400
        perplexity "$xl" $test --context "$n" --stride 1 --skip "$n" --tokens 12
        # As large a decoder with as many positions; a step of training is enough, since weights do not change the time.
        if [ ! -d "runs/speed-$n" ]; then
            "$genus" train gpt2 --n-layers 4 --d-model 256 --n-heads 4 --d-ff 1152 --n-ctx "$n" --context 128 --batch 1 \
                --steps 1 --warmup-steps 1 --eval-every 0 --tokenizer bytes --data enwik8_head/dev.txt --output "runs/speed-$n" >&2
        fi
        perplexity "runs/speed-$n/checkpoint-1" $test --stride 1 --skip "$n" --tokens 12
    done
    ;;
context)
    "$genus" eval context-length "$xl" "$vanilla" $test --step 64 --longest 512 --tokens 2000 --json
    ;;
esac
