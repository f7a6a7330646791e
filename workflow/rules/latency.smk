# Measures timings: one job per sweep and context, alone on the machine, with all methods interleaved.
rule latency:
    input:
        tokens=lambda wildcards: timing(wildcards).token_files,
        models=lambda wildcards: timing(wildcards).model_files,
        gates=lambda wildcards: timing(wildcards).gate_files,
        plans=lambda wildcards: timing(wildcards).plan_files,
    output:
        cells=RUN / "cells/{sweep}-{context}.parquet",
        samples=RUN / "samples/{sweep}-{context}.parquet",
    log:
        f"{LOGS}/latency-{{sweep}}-{{context}}.log",
    benchmark:
        f"{LOGS}/cost/latency-{{sweep}}-{{context}}.jsonl"
    threads: WHOLE_MACHINE
    resources:
        gpu=ALL_GPUS,
    params:
        where=WHERE,
        setup=SETUP,
        settings=lambda wildcards: PRESET.latency_settings(wildcards.sweep),
        source=TIMED,
    shell:
        "seerbench latency {params.where} {wildcards.sweep} {wildcards.context} 2> {log}"
