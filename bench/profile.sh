#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A profile of a training step or of an op's kernels; docs/profiling.md tells how to read it.
#
#   bench/profile.sh step [RECIPE [SETTINGS]]      nsys: CPU, GPU, ranges, loading of batches
#   bench/profile.sh kernel OP [N [D]] [OPTIONS]   ncu: speed of light, memory, scheduler, source
#
#   bench/profile.sh step gta2cs_daformer_pipa --data.num_workers 2
#   bench/profile.sh kernel pixel_contrast 16384 256 --backend triton
#
# SETTINGS are those of the recipe, as on the command line of pipa_fast.train; OPTIONS those of
# python -m bench.profile_kernel. Of this script itself, anywhere:
#
#   --output FOLDER       where the files go (default: runs/profile)
#   --tool nsight|torch   default: Nsight where it is installed and there is a GPU, else
#                         torch.profiler, which runs everywhere
#   --steps N             steps in the profile (default: 3)
#   --dry-run             print the commands only
#   PYTHON=/path/to/python bench/profile.sh …
set -euo pipefail

usage() {
    sed -n '3,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

fail() {
    echo "bench/profile.sh: $1; see bench/profile.sh --help" >&2
    exit 2
}

script=$(realpath "$0")
word='' output=runs/profile tool='' steps='' dry=0 rest=()
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        usage
        exit 0
        ;;
    --dry-run) dry=1 ;;
    --output | --tool | --steps)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --output) output=$2 ;;
        --tool) tool=$2 ;;
        --steps) steps=$2 ;;
        esac
        shift
        ;;
    *) if [ -z "$word" ]; then word=$1; else rest+=("$1"); fi ;;
    esac
    shift
done

# shellcheck source=bench/environment.sh
source "$(dirname "$script")/environment.sh"

case $word in
step) nsight=nsys ;;
kernel) nsight=ncu ;;
'') fail "the first word must be step or kernel; got none" ;;
*) fail "the first word must be step or kernel; got '$word'" ;;
esac
[[ -z $steps || $steps =~ ^[1-9][0-9]*$ ]] || fail "--steps must be a count of at least 1; got '$steps'"
[[ -z $steps || $word = step ]] || fail "--steps is of step; a kernel is called once"
case $tool in
'')
    tool=torch
    if command -v "$nsight" >/dev/null && nvidia-smi -L >/dev/null 2>&1; then tool=nsight; fi
    ;;
nsight)
    [ "$dry" = 1 ] || command -v "$nsight" >/dev/null || fail "--tool nsight needs $nsight, which is not installed"
    ;;
torch) ;;
*) fail "--tool must be nsight or torch; got '$tool'" ;;
esac

if [ "$word" = step ]; then
    recipe=streets_pipa
    if [ "${#rest[@]}" -gt 0 ] && [[ ${rest[0]} != -* ]]; then
        recipe=${rest[0]}
        rest=("${rest[@]:1}")
    fi
    [ "${rest[0]:-}" != -- ] || rest=("${rest[@]:1}")
    target=("$PYTHON" -m bench.profile_step --recipe "$recipe" --steps "${steps:-3}")
    settings=(-- "${rest[@]}")
    file=$output/step_$(basename "$recipe" .yaml)
else
    if [ "${#rest[@]}" -eq 0 ] || [[ ${rest[0]} = -* ]]; then
        fail "kernel needs an OP, such as pixel_contrast; got ${rest[0]:-none}"
    fi
    target=("$PYTHON" -m bench.profile_kernel "${rest[@]}")
    settings=()
    file=$output/kernel_${rest[0]}
fi

# Parts of the names that kernels of ours have, and torch's have not.
KERNELS='apart|mixed|others|positives|gradient|few_rows|finish|sort_rows|tile_sums|class_|ranks_'
KERNELS+='|attend|_sweep|sum_pixels|gather_slopes|label_pixels'

# Prints a command as a shell would take it, and runs it.
run() {
    printf '%q ' "$@"
    echo
    [ "$dry" = 1 ] || "$@"
}

[ "$dry" = 1 ] || mkdir -p "$output"
if [ "$tool" = torch ]; then
    run "${target[@]}" --trace "$file.json.gz" "${settings[@]}"
elif [ "$word" = step ]; then
    # From the marks on, so that warm-up and compilation are left out; workers are forks.
    run nsys profile --trace=cuda,nvtx,osrt,cudnn,cublas --sample=process-tree \
        --cuda-memory-usage=true --trace-fork-before-exec=true \
        --capture-range=cudaProfilerApi --capture-range-end=stop \
        --force-overwrite=true --output "$file" "${target[@]}" "${settings[@]}"
    run nsys stats --force-export=true \
        --report nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum,cuda_api_sum,osrt_sum "$file.nsys-rep"
else
    sections=()
    for section in SpeedOfLight SpeedOfLight_RooflineChart LaunchStats Occupancy \
        ComputeWorkloadAnalysis InstructionStats MemoryWorkloadAnalysis \
        MemoryWorkloadAnalysis_Tables SchedulerStats WarpStateStats SourceCounters; do
        sections+=(--section "$section")
    done
    # Ours alone: a sort of torch's would take all launches that are wanted.
    ours=()
    if [[ ${rest[0]} =~ ^(pixel_contrast|patch_consistency|upsampled_cross_entropy|pseudo_labels)$ ]] &&
        [[ " ${rest[*]} " != *" reference "* ]]; then
        ours=(--kernel-name "regex:$KERNELS")
    fi
    # One forward and backward, after another has compiled and warmed everything.
    run ncu --target-processes application-only --profile-from-start off --launch-count 12 \
        --nvtx --import-source yes "${ours[@]}" "${sections[@]}" \
        --force-overwrite --export "$file" "${target[@]}"
    run ncu --import "$file.ncu-rep" --page details --print-nvtx-rename kernel
fi
