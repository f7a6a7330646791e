# Timings: one job a sweep and context, all methods interleaved in it, alone on the machine.
rule latency:
    input:
        reads("latency", "sweep"),
    output:
        RUN / "cells/{sweep}-{context}.parquet",
        RUN / "samples/{sweep}-{context}.parquet",
    log:
        f"{LOGS}/latency-{{sweep}}-{{context}}.log",
    benchmark:
        f"{LOGS}/cost/latency-{{sweep}}-{{context}}.jsonl"
    threads: WHOLE_MACHINE
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: [
            PRESET.config["latency"]["sweeps"][wildcards.sweep],
            {
                key: value
                for key, value in PRESET.config["latency"].items()
                if key != "sweeps"
            },
        ],
        source=TIMED,
    shell:
        "seerbench latency {params.where} {wildcards.sweep} {wildcards.context} 2> {log}"
