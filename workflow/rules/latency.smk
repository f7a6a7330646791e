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
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.latency_settings(wildcards.sweep),
        source=TIMED,
    shell:
        "seerbench latency --results {params.results:q} -- {params.preset:q} {wildcards.sweep:q} {wildcards.context:q} 2> {log:q}"
