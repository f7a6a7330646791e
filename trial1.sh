#!/usr/bin/env bash
# Contract of every method in bf16 on the GPU, then plan and total at 8k, 32k, 128k with peak memory.
set -u
timeout 25 python3 tests/gpu/methods.py check 2>&1 | tee $OUT1/check.txt
timeout 34 python3 tests/gpu/methods.py time 2>&1 | tee $OUT1/time.txt
