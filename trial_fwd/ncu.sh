#!/usr/bin/env bash
# ncu.sh OUTDIR [METHOD...]: profiles one launch of each method (default: landed fa4) at 32k, 128x128, 90%, within 60 s.
# Run from the repository's root with PYTHONPATH set as for trial.py; text goes to OUTDIR/ncu_METHOD.txt.
set -u
out=$1; shift
methods=("$@"); [ ${#methods[@]} -gt 0 ] || methods=(landed fa4)
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
ncu=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | head -1)
[ -n "$ncu" ] || { echo "no ncu on this machine" | tee "$out/ncu_missing.txt"; exit 1; }
for method in "${methods[@]}"; do
    # Gluon calls its kernel _forward; FA-4's CuTe DSL name holds the class, FlashAttentionForward...
    case $method in fa4) name='regex:[Ff]lash' ;; *) name='regex:^_forward' ;; esac
    # The first launch matching is the profiled one; --launch-skip 1 leaves the cold one out.
    timeout 60 "$ncu" --clock-control none --launch-skip 1 --launch-count 1 --kernel-name-base function --kernel-name "$name" \
        --section SpeedOfLight --section WarpStateStats --section MemoryWorkloadAnalysis --section SchedulerStats \
        --section LaunchStats --section InstructionStats \
        python "$here/trial.py" --profile "$method" --repo "$PWD" >"$out/ncu_$method.txt" 2>&1 &
done
wait
tail -n 3 "$out"/ncu_*.txt
