#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one go of at most nine minutes.
#
#   bench/on_gpu.sh [FOLDER]        results and summary.md go to FOLDER, else $OUT, else runs/on_gpu
#   bench/on_gpu.sh FOLDER PART…    these parts only, and as long as there is time
#   PYTHON=/path/to/python bench/on_gpu.sh results
#
# A part that fails or runs out of its time is written down, and the next begins. Those that summary.md
# calls not run, or 124 (out of time), are for a second call that names them. The exit status is 0 when
# every part succeeded. bench/results/README.md tells how to read what it leaves.
set -uo pipefail
# shellcheck source=bench/environment.sh
source "$(dirname "$0")/environment.sh"

results=${1:-${OUT:-runs/on_gpu}}
wanted=("${@:2}")
for name in "${wanted[@]}"; do
    grep -qE "^ *(\\w+=0 )?(part|bench|tests) $name [0-9]" bench/on_gpu.sh && continue
    echo "bench/on_gpu.sh: there is no part $name" >&2
    exit 2
done
mkdir -p "$results" || exit 1
results=$(cd "$results" && pwd)
out=$(mktemp -d)
summary=$out/summary.md

# All of it in one archive; beside that lies what people look at first. Also when it is stopped.
collect() {
    rm -rf "$out/data"
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
    if [ "${#wanted[@]}" -gt 0 ] && [ "$name" != build ]; then
        [[ " ${wanted[*]} " == *" $name "* ]] || return 0
        seconds=$limit
    fi
    left=$((limit - SECONDS))
    if [ "$left" -lt 5 ]; then
        echo "| $name | not run | | no time left |" >>"$summary"
        failed=1
        return 0
    fi
    [ "$seconds" -lt "$left" ] || seconds=$left
    echo "== $name: at most $seconds s"
    start=$SECONDS
    timeout --signal="${stop:-TERM}" --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
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

# tests NAME SECONDS ARGUMENTS...: one call of pytest; where time runs out it is interrupted, and tells
# why those failed that it has seen
tests() {
    local name=$1 seconds=$2 stop=INT
    shift 2
    part "$name" "$seconds" bash -c 'spread_tests "$@"' - "$@"
}

# spread_tests ARGUMENTS...: by several processes where pytest-xdist is there: most time goes to compiling
spread_tests() {
    local spread=() workers
    workers=$(nproc)
    [ "$workers" -le 8 ] || workers=8
    if "$PYTHON" -c "import xdist" >/dev/null 2>&1; then spread=(-n "$workers"); fi
    exec "$PYTHON" -m pytest -q -m "not slow" -p no:cacheprovider "${spread[@]}" "$@"
}

# sanitizers: the CUDA C++ kernels under each of compute-sanitizer's tools; torch gives each tensor
# memory of its own, so that what lies past one is nobody's. Of 128 columns, Hopper's sums are by
# clusters, which copy to each other
sanitizers() {
    local tool op status=0
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck initcheck synccheck; do
        for op in pixel_contrast patch_consistency; do
            compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$PYTHON" -m bench.profile_kernel "$op" 1100 128 --backend cuda || status=1
        done
    done
    return "$status"
}

# full_step RECIPE: its step at full size, on the embedded pair written in the published layouts,
# which stays for the next one
full_step() {
    local layout
    for layout in gta5 cityscapes; do
        [ ! -e "$out/data/$layout.done" ] || continue
        "$PYTHON" -m pipa_fast.prepare streets --layout "$layout" --out "$out/data/$layout" &&
            "$PYTHON" -m pipa_fast.prepare "$layout" --root "$out/data/$layout" --subset &&
            touch "$out/data/$layout.done" || return
    done
    "$PYTHON" -m bench step --recipe "$1" --steps 3 --json "$results/step_$1.json" -- \
        --data.source_root "$out/data/gta5" --data.target_root "$out/data/cityscapes" \
        --data.patch_scale "[8.0, 8.0]" --model.weights null
}
export -f spread_tests sanitizers full_step
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
tests tests 130 tests/csrc/test_cuda_gpu.py tests/ops/test_gpu.py tests/kernels \
    tests/ops/test_waits.py tests/training/test_gpu.py
if [ "$arch" = 90a ]; then # the kernels for other chips, on this one
    PIPA_FAST_HOPPER=0 tests tests_mma 40 tests/csrc/test_cuda_gpu.py
fi
half=(--dtypes bfloat16 --dims 256)
bench pixel_contrast 80 pixel_contrast "${half[@]}" --peers none --seconds 3 \
    --sizes 1024 4096 16384 32768 65536 131072
bench pixel_contrast_peers 110 pixel_contrast "${half[@]}" --seconds 4 \
    --peers eager compile flex_attention --sizes 16384 32768
bench pixel_contrast_eager 25 pixel_contrast "${half[@]}" --seconds 1 \
    --peers eager chunked --sizes 1024 4096 65536 131072
bench patch_consistency 35 patch_consistency --dtypes bfloat16 --dims 128 256 --seconds 2
part bandwidth 15 "$PYTHON" -m bench bandwidth --device cuda --seconds 2 --json "$out/bandwidth.json"
part roofline 15 "$PYTHON" -m bench roofline "$out"/{pixel_contrast,patch_consistency,bandwidth}.json \
    --output "$out/roofline.png"
part plot 15 "$PYTHON" -m bench.plot --output "$out/pixel_contrast.png" \
    "$out"/pixel_contrast.json "$out"/pixel_contrast_peers.json "$out"/pixel_contrast_eager.json
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
