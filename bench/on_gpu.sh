#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one go of at most nine minutes.
#
#   bench/on_gpu.sh [FOLDER]        results and summary.md go to FOLDER, else $OUT, else runs/on_gpu
#   PYTHON=/path/to/python bench/on_gpu.sh results
#
# A part that fails or runs out of its time is written down, and the next begins. The exit status is
# 0 when every part succeeded. bench/results/README.md tells how to read what it leaves.
set -uo pipefail
# shellcheck source=bench/environment.sh
source "$(dirname "$0")/environment.sh"

results=${1:-${OUT:-runs/on_gpu}}
mkdir -p "$results" || exit 1
results=$(cd "$results" && pwd)
out=$(mktemp -d)
summary=$out/summary.md

# All of it in one archive; beside that lies what people look at first. Also when it is stopped.
collect() {
    tar -C "$out" -czf "$results/all.tar.gz" .
    local file
    for file in summary.md precision.md ncu.log bandwidth.json roofline.png \
        {pixel_contrast,patch_consistency}.{json,png}; do
        [ ! -e "$out/$file" ] || cp "$out/$file" "$results/"
    done
    rm -rf "$out"
}
trap collect EXIT
trap 'exit 130' INT TERM

limit=${LIMIT:-530} # seconds in all
failed=0

# part NAME SECONDS COMMAND...: runs it, its output to NAME.log, its exit status to the summary
part() {
    local name=$1 seconds=$2 left start status
    shift 2
    left=$((limit - SECONDS))
    if [ "$left" -lt 5 ]; then
        echo "| $name | not run | | no time left |" >>"$summary"
        failed=1
        return 0
    fi
    [ "$seconds" -lt "$left" ] || seconds=$left
    echo "== $name: at most $seconds s"
    start=$SECONDS
    timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || failed=1
    tail -n 5 "$out/$name.log"
    echo "| $name | $status | $((SECONDS - start)) | \`$name.log\` |" >>"$summary"
}

environment() {
    echo '```'
    echo "commit $(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
    date -u +"%Y-%m-%d %H:%M UTC"
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader \
        2>&1 | head -n 4
    "$PYTHON" - <<'PYTHON' 2>&1
import importlib, platform
print("python", platform.python_version())
for name in ("torch", "triton", "numpy"):
    try:
        module = importlib.import_module(name)
    except Exception as error:
        print(name, "does not import:", error)
        continue
    print(name, module.__version__)
    if name == "torch":
        print("CUDA of torch", module.version.cuda, "available", module.cuda.is_available())
PYTHON
    if command -v nvcc >/dev/null; then nvcc --version | grep release; else echo "no nvcc"; fi
    if command -v ncu >/dev/null; then ncu --version | tail -n 1; else echo "no ncu"; fi
    echo '```'
}

# bench NAME SECONDS ARGUMENTS...: one call of python -m bench, with its rows and picture
bench() {
    local name=$1 seconds=$2
    shift 2
    part "$name" "$seconds" "$PYTHON" -m bench "$@" --device cuda --warmup 0.1 \
        --json "$out/$name.json" --plot "$out/$name.png"
}

# sanitizers: the CUDA C++ kernels under each of compute-sanitizer's tools; torch gives each tensor
# memory of its own, so that what lies past one is nobody's
sanitizers() {
    local tool op status=0
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck initcheck synccheck; do
        for op in pixel_contrast patch_consistency; do
            compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$PYTHON" -m bench.profile_kernel "$op" 1100 64 --backend cuda || status=1
        done
    done
    return "$status"
}

# full_step RECIPE: its step at full size, on the embedded pair written in the published layouts
full_step() {
    local layout
    for layout in gta5 cityscapes; do
        "$PYTHON" -m pipa_fast.prepare streets --layout "$layout" --out "$out/data/$layout" &&
            "$PYTHON" -m pipa_fast.prepare "$layout" --root "$out/data/$layout" --subset || return
    done
    "$PYTHON" -m bench step --recipe "$1" --steps 3 --json "$results/step_$1.json" -- \
        --data.source_root "$out/data/gta5" --data.target_root "$out/data/cityscapes" \
        --data.patch_scale "[8.0, 8.0]" --model.weights null
    local status=$?
    rm -rf "$out/data"
    return "$status"
}
export -f sanitizers full_step
export PYTHON out results

{
    echo "# On a GPU"
    echo
    environment
    echo
    echo "| part | exit status | seconds | output |"
    echo "|---|---|---|---|"
} >"$summary"
cat "$summary"

nvidia-smi >"$out/nvidia-smi.txt" 2>&1
cuda=0
if command -v nvcc >/dev/null; then cuda=1; fi
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[ "$arch" != 90 ] || arch=90a
part build 150 env PIPA_FAST_CUDA=$cuda PIPA_FAST_CUDA_ARCHS="${arch:-90a}" \
    "$PYTHON" setup.py --quiet build_ext --inplace
part info 15 "$PYTHON" -m pipa_fast.info
tests=(tests/ops)
[ -d tests/kernels ] && tests+=(tests/kernels)
tests+=(tests/csrc/test_cuda_gpu.py)
part tests 100 "$PYTHON" -m pytest -q -m "not slow" -p no:cacheprovider "${tests[@]}"
if [ "$arch" = 90a ]; then # the kernels for other chips, on this one
    part tests_mma 40 env PIPA_FAST_HOPPER=0 "$PYTHON" -m pytest -q -m "not slow" \
        -p no:cacheprovider tests/csrc/test_cuda_gpu.py
fi
half=(--dtypes bfloat16 --dims 256)
bench pixel_contrast 60 pixel_contrast "${half[@]}" --peers none --seconds 3 \
    --sizes 1024 4096 16384 32768 65536 131072
bench pixel_contrast_peers 110 pixel_contrast "${half[@]}" --seconds 4 \
    --peers eager compile flex_attention --sizes 16384 32768
bench pixel_contrast_eager 25 pixel_contrast "${half[@]}" --seconds 1 \
    --peers eager chunked --sizes 1024 4096 65536 131072
bench patch_consistency 35 patch_consistency --dtypes bfloat16 --dims 128 256 --seconds 2
part ncu 50 bench/profile.sh kernel pixel_contrast 16384 256 --tool nsight --output "$out"
part sanitizers 60 bash -c sanitizers
part precision 40 "$PYTHON" -m bench.precision --device cuda --output "$out/precision.md"
bench widths 30 pixel_contrast --dtypes bfloat16 --dims 64 128 512 --seconds 1.5 \
    --sizes 32768 --peers none
PIPA_FAST_HOPPER=0 bench widths_mma 25 pixel_contrast --dtypes bfloat16 --dims 64 128 256 512 \
    --seconds 1 --sizes 32768 --backends cuda --peers none
bench all_form 30 pixel_contrast "${half[@]}" --variants all --seconds 2 --sizes 16384 \
    --peers eager metric_learning
bench around 25 upsampled_cross_entropy pseudo_labels --seconds 2
bench small 25 sample_anchors gather_pixels overlap_pairs downscale_labels teacher_update \
    --seconds 1
part step 40 "$PYTHON" -m bench step --recipe streets_pipa --json "$results/step_streets_pipa.json"
part step_daformer 90 bash -c 'full_step gta2cs_daformer_pipa'
part step_hrda 90 bash -c 'full_step gta2cs_hrda_pipa'
part bandwidth 15 "$PYTHON" -m bench bandwidth --device cuda --seconds 2 --json "$out/bandwidth.json"
part roofline 15 "$PYTHON" -m bench roofline "$out"/{pixel_contrast,patch_consistency,bandwidth}.json \
    --output "$out/roofline.png"
part plot 15 "$PYTHON" -m bench.plot --output "$out/pixel_contrast.png" \
    "$out"/pixel_contrast.json "$out"/pixel_contrast_peers.json "$out"/pixel_contrast_eager.json

{
    echo
    echo "## Comparisons"
    echo
    for name in pixel_contrast pixel_contrast_peers pixel_contrast_eager patch_consistency widths \
        widths_mma all_form around small; do
        [ -s "$out/$name.json" ] || continue
        echo "### $name"
        echo
        "$PYTHON" -m bench.tables "$out/$name.json" 2>&1
        echo
    done
    echo "$SECONDS s in all"
} >>"$summary"

cat "$summary"
exit "$failed"
