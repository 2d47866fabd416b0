#!/bin/sh
# Measures on a GPU all that docs/benchmarks.md shows of one. Options given are added to every run.
set -e
cd "$(dirname "$0")/.."
output=output/gpu

modules() {  # folder, options
    folder=$1
    shift
    python tools/benchmark.py modules --device cuda --sweep-sides --sweep-channels \
        --output "$output/$folder" "$@"
}

models() {  # folder, options
    folder=$1
    shift
    python tools/benchmark.py models --device cuda --batch-size 4 --parts backbone training \
        --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml \
        --baseline configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_nearest.yaml \
        --output "$output/$folder" "$@"
}

modules float32 --batch-size 2 "$@"
modules channels_last --batch-size 2 --memory-format channels_last "$@"
modules bfloat16 --batch-size 2 --autocast bfloat16 "$@"
modules batch_8 --batch-size 8 "$@"
models models "$@"
models models_float16 --autocast float16 "$@"
python tools/compare_upsamplers.py --device cuda --output "$output/comparison" "$@"
