#!/bin/sh
# Measure on a GPU what docs/benchmarks.md shows of one. Arguments are added to every command.
set -e
cd "$(dirname "$0")/.."
models="models --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_lda_aqu.yaml
    --baseline configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_nearest.yaml --parts backbone training"

measure() {  # folder, then the command
    output="output/gpu/$1"
    shift
    python tools/benchmark.py "$@" --output "$output"
}

modules="modules --device cuda --sweep-sides --sweep-channels"
measure float32 $modules --batch-size 2 "$@"
measure channels_last $modules --batch-size 2 --memory-format channels_last "$@"
measure bfloat16 $modules --batch-size 2 --autocast bfloat16 "$@"
measure batch_8 $modules --batch-size 8 "$@"
measure models $models --device cuda --batch-size 4 "$@"
measure models_float16 $models --device cuda --batch-size 4 --autocast float16 "$@"
python tools/compare_upsamplers.py --device cuda --output output/gpu/comparison "$@"
